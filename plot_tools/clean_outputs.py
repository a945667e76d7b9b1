"""Make executed chapters fit to be committed: `python -m plot_tools.clean_outputs notebooks/*.ipynb`.

Warnings and execution times are dropped, since they differ between machines. Pictures are stored with a palette,
which keeps them as they look and a chapter below 300 kB.
"""

import base64
import io
import os
import re
import sys
from pathlib import Path

import nbformat
from PIL import Image

TENSORFLOW = re.compile(r"^WARNING:tensorflow:.*\n", re.MULTILINE)  # in Jupyter it warns on stdout


def with_palette(png):
    """The PNG file (base64 text) again with a palette, of 64 colours or 32 greys: less than half the size."""
    picture = Image.open(io.BytesIO(base64.b64decode(png)))
    if picture.mode == "P":
        return png  # has one already
    picture = picture.convert("RGB")
    grey = picture.convert("L").convert("RGB").tobytes() == picture.tobytes()
    file = io.BytesIO()
    # maximum coverage, because the default merges colours that cover few pixels, such as a lone marker
    picture.quantize(32 if grey else 64, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def tidy(outputs):
    """The outputs of a cell without warnings, one print joined to the next, pictures with a palette. Twice is the same as once."""
    kept = []
    for output in outputs:
        if output.output_type == "stream" and kept and kept[-1].output_type == "stream" and output.name == "stdout":
            kept[-1].text += output.text
        elif output.get("name") != "stderr":
            kept.append(output)
        if "image/png" in output.get("data", {}):
            output.data = {"image/png": with_palette(output.data["image/png"])}
    for output in kept:
        if output.output_type == "stream":
            output.text = TENSORFLOW.sub("", output.text)
    return [output for output in kept if output.get("text") != ""]


def clean(path):
    """Rewrite one notebook in place, under a temporary name first."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = tidy(cell.outputs)
    notebook.metadata.language_info = {"name": "python"}
    part = Path(path).with_suffix(".tmp")
    nbformat.write(notebook, part)
    os.replace(part, path)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        clean(name)
        print(f"{name}: {Path(name).stat().st_size / 1000:.0f} kB")
