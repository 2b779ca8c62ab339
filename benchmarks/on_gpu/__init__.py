"""What the worker does on the GPU that is here, measured within minutes on a machine without a network.

`prepare.sh` packs what has to be carried there, `measure.sh` runs the stages of `measure.py`, most valuable first, and
writes results.jsonl and a table. `TINY=1` rehearses all of it on a CPU.
"""
