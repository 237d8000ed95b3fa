"""COCO's class table: category ids 1..90, of which ten belong to no class.

The published checkpoints have 90 outputs, output l for id l + 1; those of the ten ids were trained to stay silent.
"""

from efficientdet.structures import Category

_NAMES = (
    "person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, -, "
    "stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, -, "
    "backpack, umbrella, -, -, handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball "
    "bat, baseball glove, skateboard, surfboard, tennis racket, bottle, -, wine glass, cup, fork, knife, "
    "spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake, chair, "
    "couch, potted plant, bed, -, dining table, -, -, toilet, -, tv, laptop, mouse, remote, keyboard, cell "
    "phone, microwave, oven, toaster, sink, refrigerator, -, book, clock, vase, scissors, teddy bear, hair "
    "drier, toothbrush"
)

CATEGORIES: tuple[Category, ...] = tuple(
    Category(id=number, name=f"unused {number}" if name == "-" else name)
    for number, name in enumerate(_NAMES.split(", "), start=1)
)
"""In the order of the published checkpoints' outputs."""
