"""Train a tool-using agent: `python train.py`, `python train.py +experiment=aepo_qwen3_14b plan=true`."""

from aepo_lightning.app.main import main

if __name__ == "__main__":
    main()
