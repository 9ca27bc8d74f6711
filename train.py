"""Fine-tunes a model as a configuration says; `pbr train` is the same for an installed package.

    python train.py                                                  the digits run, on any machine
    python train.py --config configs/digits.py --config.method=full --workdir runs/full

The same command again resumes where the run was. `--help` lists every setting.

A step, in the order of `pbr_jax/training/step.py`:

    1. select    the policies draw K of the D columns of every site, before the forward pass
    2. forward   dense; saves the drawn columns alone
    3. backward  exact input gradients; K rows of every weight gradient
    4. update    the optimizer moves these rows and their moments; all others stand still
    5. learn     the policies learn from the norms of the rows

`pbr_jax/training/loop.py` repeats it, logs, evaluates and saves; `pbr_jax/commands/train.py` joins
it with a work directory, the console and the report.
"""

import sys

from pbr_jax.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "train")
    sys.exit(main())
