"""`deepspeed train.py --config FILE` (data parallel), or `python train.py --config FILE` (one process)."""

from train.run import app

if __name__ == "__main__":
    app()
