"""What tests/test_ddp.py runs, once as it is and once under torchrun.

Train, then write curves and weights of each case.

torchrun --nproc_per_node 2 tests/ddp_worker.py OUT
"""

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

torch.set_num_threads(1)

from safetensors.torch import save_file

from cotdistill.arms import Arm, arm_from_name
from cotdistill.checkpoints import restore_parameters, trainable_parameters
from cotdistill.encode import encode_all
from cotdistill.hyperparameters import TrainConfig
from cotdistill.processes import rank_and_world_size
from cotdistill.students import load_student
from cotdistill.study import read_data
from cotdistill.train import fine_tune

# 13 questions in batches of 4: the last batch has one, so the second process has nothing of it.
CASES = {
    "label_only": (Arm("label_only"), dict(batch_size=4)),
    "pre_cot": (Arm("pre_cot"), dict(batch_size=4)),
    "accumulated": (arm_from_name("post_cot", label_weight=4.0), dict(batch_size=2, grad_accum=3)),
    "balanced": (
        Arm("post_cot", loss="balanced"),
        dict(batch_size=2, grad_accum=3, loss_lambda=2.0),
    ),
    "fresh": (
        arm_from_name("post_cot_shuffled", fresh=True),
        dict(batch_size=4, frozen_layers=1, select="best"),
    ),
}


def main(out: Path) -> None:
    if "RANK" in os.environ:
        torch.distributed.init_process_group()
    spec = dict(
        dataset="microworld/everyday",
        data_dir="",
        validation_size=8,
        data_seed=1,
        rationales="",
        rationales_print="",
        microworld=dict(n_train=13, n_test=8),
    )
    data, student = read_data(spec), load_student("tiny-llama")
    before = {name: p.detach().clone() for name, p in student.model.named_parameters()}
    validations, curves = iter([(0.5, 2.0), (0.75, 1.0), (0.25, 0.5)]), {}
    for name, (arm, more) in CASES.items():
        restore_parameters(student.model, before)
        config = TrainConfig(**dict(lr=3e-3, epochs=3, select="last") | more)
        passes = encode_all(student, data.train, data.rationales, arm, "text", 0, config.epochs)
        steps = []
        validate = (
            (lambda: dict(zip(("accuracy", "label_nll"), next(validations), strict=True)))
            if config.select == "best"
            else None
        )
        history, summary = fine_tune(
            student, passes, arm, config, 5, out / name, validate, progress=steps.append
        )
        curves[name] = {
            "history": history.drop(
                columns=["validation_accuracy", "validation_label_nll"]
            ).to_dict("list"),
            "summary": summary,
            "shown": len(steps),
        }
        if rank_and_world_size()[0] == 0:
            save_file(trainable_parameters(student.model), out / f"{name}.safetensors")
    (out / f"curves{rank_and_world_size()[0]}.json").write_text(json.dumps(curves))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
