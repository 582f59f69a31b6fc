"""Makes what is generated under docs/: reference, figures, recording. `make docs` builds the site.

python -m docsite.reference          writes docs/reference/ from the code; --check only compares
python -m docsite.figures            draws docs/images/*.svg
python -m docsite.recording          records docs/images/terminal.svg from the real commands
docsite/hooks.py                     what mkdocs does differently for this site
"""
