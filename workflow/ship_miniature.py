"""Train the miniature by its recipe, or load it, and write `rrlib/images/miniature/files/`.

    python workflow/ship_miniature.py

About half an hour of one CPU core, most of it the base's. The card says how the weights were made;
what they can do is measured in chapter 13.
"""

import shutil
from dataclasses import asdict

from rrlib.images.miniature import weights as image_weights
from rrlib.lab import store
from rrlib.lab.images.recipes import MiniDiffusion, hollow

TOLD = ("cpu_seconds", "device", "commit", "versions")  # of an artefact's manifest


def main() -> None:
    recipes = {image_weights.BASE: MiniDiffusion(), image_weights.TUNED: hollow()}
    made = {name: store.obtain(recipe) for name, recipe in recipes.items()}
    parts = recipes | {"autoencoder": recipes[image_weights.BASE].autoencoder}
    card = {
        name: {"recipe": asdict(recipe)} | {key: store.manifest(recipe)[key] for key in TOLD}
        for name, recipe in parts.items()
    }
    shutil.rmtree(image_weights.FOLDER, ignore_errors=True)
    image_weights.write(image_weights.FOLDER, *made.values(), card)
    size = sum(path.stat().st_size for path in image_weights.FOLDER.rglob("*") if path.is_file())
    print(f"{image_weights.FOLDER.name}: {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
