"""Writes the files that a cloud-config document holds, flat, into a folder: `unpack.py DOCUMENT FOLDER`."""

import sys
from pathlib import Path

import yaml


def main():
    document, folder = map(Path, sys.argv[1:])
    text = document.read_text()
    if not text.startswith("#cloud-config\n"):
        sys.exit(f"{document} is no cloud-config")
    config = yaml.safe_load(text)
    folder.mkdir()
    for file in config["write_files"]:
        place = folder / Path(file["path"]).name
        place.write_text(file["content"])
        place.chmod(int(file["permissions"], 8))
    # What is run, in this order, one a line.
    commands = [*config["bootcmd"], *config["runcmd"]]
    (folder / "commands").write_text("".join(" ".join(command) + "\n" for command in commands))


if __name__ == "__main__":
    main()
