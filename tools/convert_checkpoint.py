"""`ziya convert ...` as a script: `python tools/convert_checkpoint.py to-hf runs/demo/stage3 out`."""

import sys

from megatron_ziya.cli import main

if __name__ == "__main__":
    sys.exit(main(["convert", *sys.argv[1:]]))
