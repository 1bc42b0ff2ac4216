"""The part of OpenAI's HTTP API that one model of one's own can keep: models, completions, chat completions, embeddings.

The stock `openai` client works against it (tests/test_serve_openai.py). What is not kept is refused by name, never ignored.
"""
