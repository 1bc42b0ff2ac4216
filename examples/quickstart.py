"""Train on a table, look at how well it does, ask for an answer and for its reasons. `python examples/quickstart.py`."""

import luban

model = luban.train("breast-cancer", target="diagnosis", size="nano", epochs=15)

accuracy = model.reports["evaluate"].numbers["outputs"]["diagnosis"]["metrics"]["accuracy"]
print(f"accuracy {accuracy['value']:.3f} ({accuracy['low']:.3f} to {accuracy['high']:.3f})")

rows = [{name: column.schema()["examples"][0] for name, column in model.columns.items() if name in model.inputs}]
print(model.predict(rows)[0])

why = model.explain(rows, rows=1, method="kernel-shap")
why.save("quickstart-out")

small = model.compress("breast-cancer", quantize="int8")
print(f"{model.bytes():,} -> {small.bytes():,} bytes")
small.save("quickstart-out/model")
