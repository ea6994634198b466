"""Stands for finished runs."""
import json


def finished(directory, recipe, top1=62.0, *, data="cifar10", weights=None, model="x",
             **result):
    """Writes what a finished run leaves; returns its directory."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(
        {"model": model, "kind": type(recipe).__name__, "recipe": recipe.to_json(),
         "data": {"data": data, "weights": weights}}))
    (directory / "result.json").write_text(json.dumps(
        {"measured": {"top1": top1}, "parameters": 8584882, "images_per_second": 40.0, **result}))
    return directory
