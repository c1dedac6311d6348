"""`normapps gan`: train a GAN, draw from it, judge it."""

from __future__ import annotations

import typer

from . import gan_classifier, gan_compare, gan_evaluate, gan_sample, gan_train

app = typer.Typer(
    no_args_is_help=True, help="Train a GAN on your pictures, draw from it, and judge it."
)


@app.callback()
def _group() -> None: ...


app.command("train")(gan_train.train)
app.command("sample")(gan_sample.sample)
app.command("interpolate")(gan_sample.interpolate)
app.command("export")(gan_sample.export)
app.command("inspect")(gan_sample.inspect)
app.command("classifier")(gan_classifier.classifier)
app.command("compare")(gan_compare.compare)
app.command("evaluate")(gan_evaluate.evaluate)
