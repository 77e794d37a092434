"""Write the generated manifests: `python -m deploy.generate`."""

from deploy.generate.manifests import DIRECTORY, files

for name, text in files().items():
    (DIRECTORY / name).write_text(text, encoding="utf-8")
