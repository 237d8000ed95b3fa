"""Flags of NVIDIA's EfficientDet for TensorFlow 2 (DeepLearningExamples) and their equivalents here.

docs/from-nvidia.md shows these tables (a test compares them), and the command line answers an NVIDIA flag with its
row. Cells are Markdown; a cell that begins with `none` has no equivalent and says why.
"""

import re
from collections.abc import Collection, Mapping, Sequence

Rows = tuple[tuple[str, str], ...]

TRAIN: Rows = (
    ("`--training_mode`", "depends on the recipe: see the table *Training modes*"),
    ("`--training_file_pattern`", "`--data.train coco/records`, or a glob of files"),
    ("`--val_file_pattern`", "the split `val` of the same dataset, or `--data.validation coco/val`"),
    ("`--val_json_file`", "none: boxes, areas and crowds are in the records"),
    ("`--model_name`", "the preset: `efficientdet train d3 --data.train coco/records`"),
    ("`--model_dir`", "`--run-dir runs/mine`"),
    ("`--batch_size`", "`--training.batch-size 1600`, over all GPUs"),
    ("`--eval_batch_size`", "`--evaluation.batch-size 80`"),
    (
        "`--num_examples_per_epoch`",
        "none: counted. NVIDIA uses 120,000 but COCO has 118,287, so its epoch is 1.4% longer",
    ),
    ("`--num_epochs`", "`--training.epochs 300 --optimizer.schedule-epochs 400`"),
    (
        "`--benchmark`, `--benchmark_steps`",
        "`efficientdet benchmark train coco/records` ([performance.md](performance.md))",
    ),
    ("`--use_fake_data`", "`--data.train synthetic`"),
    ("`--use_xla`", "`--training.xla on`; JAX always compiles with XLA, TensorFlow by default on a GPU"),
    ("`--amp`", "`--training.precision mixed_float16`; also `mixed_bfloat16`, `tf32` and `float32`"),
    (
        "`--set_num_threads`",
        "none: TensorFlow uses the cores assigned to its process; `scripts/slurm` gives each process its share",
    ),
    (
        "`--log_filename`",
        "`--logging.time-log`: `time_log.txt` in the run folder, same format; `metrics.jsonl` is always written",
    ),
    ("`--log_steps`", "`--training.log-every 20`"),
    ("`--lr_tb`", "none: the learning rate is always logged, in `metrics.jsonl` and for TensorBoard"),
    ("`--enable_map_parallelization`", "none: always parallel"),
    ("`--checkpoint_period`", "`--training.checkpoint-every 500`, in steps; also at each evaluation and at the end"),
    ("`--pretrained_ckpt`", "`--weights d0.safetensors`; NVIDIA's code never reads the flag"),
    ("`--backbone_init`", "`--backbone imagenet`"),
    ("`--hparams`", "one option each, see below; an unknown one is an error"),
    ("`--lr`", "`--optimizer.learning-rate 2.2`"),
    ("`--warmup_epochs`", "`--optimizer.warmup-epochs 25`"),
    ("`--warmup_value`", "`--optimizer.warmup-learning-rate 1e-4`"),
    (
        "`--seed`",
        "`--training.seed 1`; order and augmentation differ between epochs, and no two processes read the same images",
    ),
    ("`--debug`", "`efficientdet doctor` checks the machine; warnings about non-finite steps always name the images"),
    ("`--time_history`", "none: images/s and the input's share of the time are always logged"),
    ("`--validate`", "none: every evaluation also reports the losses"),
    (
        "`--testdev_dir`",
        "`efficientdet evaluate runs/d0 --data test-dev --split test-dev` ([evaluation.md](evaluation.md)); "
        "NVIDIA's flag does nothing",
    ),
    ("`--eval_samples`", "`--evaluation.max-images 5000`; 0, the default, means all"),
)
"""train.py."""

HPARAMS: Rows = (
    ("`moving_average_decay`", "`--optimizer.average-decay 0.999`"),
    (
        "`momentum`",
        "`--optimizer.momentum 0.93`, defined as in TensorFlow 1 and PyTorch; Keras, which NVIDIA uses, "
        "differs only while the rate changes",
    ),
    (
        "`learning_rate`, `lr_warmup_init`, `lr_warmup_epoch`",
        "`--optimizer.learning-rate 0.7 --optimizer.warmup-learning-rate 1e-4 --optimizer.warmup-epochs 5`",
    ),
    ("`num_epochs`", "`--optimizer.schedule-epochs 400`"),
    ("`clip_gradients_norm`", "`--optimizer.clip-norm 10`"),
    ("`weight_decay`", "`--optimizer.weight-decay 4e-5`"),
    ("`image_size`", "`--model.image-size 512 512`, height before width"),
    ("`num_classes`", "none: read from the dataset. NVIDIA adds one to the number of classes"),
    ("`jitter_min`, `jitter_max`", "`--augmentation.scale-min 0.1 --augmentation.scale-max 2.0`"),
    ("`input_rand_hflip`", "`--augmentation.no-horizontal-flip`"),
    (
        "`alpha`, `gamma`, `label_smoothing`",
        "`--loss.focal-alpha 0.25 --loss.focal-gamma 1.5 --loss.label-smoothing 0.0`",
    ),
    ("`delta`, `box_loss_weight`", "`--loss.huber-delta 0.1 --loss.box-weight 50`"),
    ("`max_instances_per_image`", "none: sized for the image with the most boxes"),
    ("`skip_crowd_during_training`", "none: crowd boxes are never trained on"),
    ("`survival_prob`", "`--model.backbone.survival 0.8`"),
    ("`var_freeze_expr`", "`--training.freeze backbone`, or `all_but_heads`"),
    ("`loss_scale`", "none: it starts at 2^15 and adapts to the gradients"),
    (
        "`iou_loss_type`, `positives_momentum`, `lr_decay_method`, `optimizer`",
        "none: there is one loss and one schedule; `optimizer.method` is sgd in these presets",
    ),
)
"""Keys of its `--hparams`."""

EVALUATE: Rows = (
    ("the program", "`efficientdet evaluate runs/d0 --data coco/records`"),
    ("`--eval_samples`", "`efficientdet evaluate runs/d0 --data coco/records --max-images 5000`"),
    ("`--val_file_pattern`", "`efficientdet evaluate runs/d0 --data coco/val`"),
    ("`--val_json_file`", "none: the ground truth is in the records"),
    ("`--ckpt_path`", "the first argument: a run folder, a weights file, or a name such as `coco-d0`"),
    ("`--model_name`, `--hparams`", "none: weights files include their model, classes and preprocessing"),
    ("`--batch_size`", "`efficientdet evaluate runs/d0 --data coco/records --batch-size 64`"),
    ("`--only_this_epoch`", "none: the run keeps `best` and `last`; NVIDIA's flag does nothing"),
    ("`--enable_map_parallelization`", "none: always parallel"),
    (
        "`--amp`",
        "`efficientdet evaluate runs/d0 --data coco/records --precision mixed_float16`; boxes are still decoded "
        "in float32; NVIDIA decodes them in float16",
    ),
)
"""eval.py."""

PREDICT: Rows = (
    (
        "`infer.py --image_path --output_dir --model_dir`",
        "`efficientdet predict runs/d0 photograph.jpg --output found`",
    ),
    ("`infer.py --model_name`, `--hparams`", "none: weights files include their model"),
    (
        "`infer.py --saved_model_dir`",
        "`efficientdet predict exports/saved_model photograph.jpg`: the first argument is an export instead of a run",
    ),
    ("`--debug` of both", "none"),
    ("`inspector.py --mode dry`", "`efficientdet describe d0`"),
    (
        "`inspector.py --mode export`, `--export_ckpt`, `--saved_model_dir`, `--tflite_path`, `--tensorrt`",
        "`efficientdet export RUN --format saved_model` or litert, onnx, openvino; [exports](export.md)",
    ),
    (
        "`inspector.py --mode benchmark`, `--bm_runs`, `--trace_filename`, `--dllogger_path`",
        "`efficientdet benchmark inference` ([performance.md](performance.md))",
    ),
    ("`--mode video`, `--input_video`, `--output_video`", "`efficientdet predict runs/d0 film.mp4 --output found`"),
    ("`--model_name`, `--ckpt_path`, `--hparams`", "the first argument: a run, a weights file or a name"),
    ("`--batch_size`", "`efficientdet predict runs/d0 photographs/ --batch-size 8`"),
    ("`--amp`", "`efficientdet predict runs/d0 photograph.jpg --precision mixed_float16`"),
    ("`--use_xla`", "`efficientdet predict runs/d0 photograph.jpg --xla on`"),
    ("`--input_image`, `--output_image_dir`", "`efficientdet predict runs/d0 photograph.jpg --output found`"),
    ("`--max_boxes_to_draw`", "none: at most 100 in an image; in Python, `postprocess` of `Detector`"),
    ("`--min_score_thresh`", "`efficientdet predict runs/d0 photograph.jpg --score-threshold 0.4`"),
    ("`--nms_method`", "none: Gaussian soft-NMS per class, as when AP is measured"),
)
"""inspector.py and infer.py."""

_TABLES: Mapping[str, Rows] = {"train": TRAIN, "evaluate": EVALUATE, "predict": PREDICT, "export": PREDICT}


def explain(verb: str, words: Sequence[str], known: Collection[str] = ()) -> str | None:
    """Translates NVIDIA flags that were typed after a command.

    Args:
        verb: the command, such as train.
        words: what was typed after it.
        known: options that the command has, which are not translated.

    Returns:
        One line, or None if no word is a flag of NVIDIA's corresponding program.
    """
    rows = _TABLES.get(verb, ())
    found: dict[str, str] = {}
    for place, word in enumerate(words):
        flag, _, value = word.partition("=")
        if not flag.startswith("--") or flag in known:
            continue
        if flag == "--hparams" and rows is TRAIN:
            keys = re.findall(r"([\w.]+)\s*=", value or "".join(words[place + 1 : place + 2]))
            of_keys = {key: find(HPARAMS, f"`{key.split('.')[-1]}") for key in keys}
            found |= (answers := {key: answer for key, answer in of_keys.items() if answer})
            if answers:
                continue
        if answer := (find(rows, f"{flag} {value}") if value else None) or find(rows, flag):
            found[flag] = answer
        elif answer := find(rows, f"--{flag.removeprefix('--no')}"):  # --noamp switches off
            found[flag] = answer if answer.startswith("none") else f"without {answer}"
    if not found:
        return None
    texts = "; ".join(f"`{name}` -> {answer}" for name, answer in found.items())
    return f"NVIDIA's flags have different names here: {texts} (see docs/from-nvidia.md)."


def find(rows: Rows, name: str) -> str | None:
    """Returns the equivalent of a flag or key: the first statement of its row's right cell, without links."""
    for there, here in rows:
        if re.search(rf"(?<![\w-]){re.escape(name)}\b", there):
            return re.split(r"; |\. ", re.sub(r" ?\(?\[[^]]*\]\([^)]*\)\)?", "", here))[0]
    return None
