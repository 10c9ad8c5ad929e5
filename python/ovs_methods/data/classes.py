"""The classes of the published data sets, in order of their labels, and the words that papers ask for them with."""

import re

from ..errors import UserError

_VOC = (
    "aeroplane, bicycle, bird, boat, bottle, bus, car, cat, chair, cow, diningtable, dog, horse, motorbike, person, "
    "pottedplant, sheep, sofa, train, tvmonitor"
)
_CONTEXT = (
    "aeroplane, bag, bed, bedclothes, bench, bicycle, bird, boat, book, bottle, building, bus, cabinet, car, cat, "
    "ceiling, chair, cloth, computer, cow, cup, curtain, dog, door, fence, floor, flower, food, grass, ground, horse, "
    "keyboard, light, motorbike, mountain, mouse, person, plate, platform, pottedplant, road, rock, sheep, shelves, "
    "sidewalk, sign, sky, snow, sofa, table, track, train, tree, truck, tvmonitor, wall, water, window, wood"
)
_COCO = (
    "person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign, "
    "parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella, "
    "handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, "
    "surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, "
    "broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop, "
    "mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase, scissors, "
    "teddy bear, hair drier, toothbrush"
)
_STUFF = (
    "banner, blanket, branch, bridge, building-other, bush, cabinet, cage, cardboard, carpet, ceiling-other, "
    "ceiling-tile, cloth, clothes, clouds, counter, cupboard, curtain, desk-stuff, dirt, door-stuff, fence, "
    "floor-marble, floor-other, floor-stone, floor-tile, floor-wood, flower, fog, food-other, fruit, furniture-other, "
    "grass, gravel, ground-other, hill, house, leaves, light, mat, metal, mirror-stuff, moss, mountain, mud, napkin, "
    "net, paper, pavement, pillow, plant-other, plastic, platform, playingfield, railing, railroad, river, road, rock, "
    "roof, rug, salad, sand, sea, shelf, sky-other, skyscraper, snow, solid-other, stairs, stone, straw, "
    "structural-other, table, tent, textile-other, towel, tree, vegetable, wall-brick, wall-concrete, wall-other, "
    "wall-panel, wall-stone, wall-tile, wall-wood, water-other, waterdrops, window-blind, window-other, wood"
)
_ADE = (
    "wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk, person, earth, door, "
    "table, mountain, plant, curtain, chair, car, water, painting, sofa, shelf, house, sea, mirror, rug, field, "
    "armchair, seat, fence, desk, rock, wardrobe, lamp, bathtub, railing, cushion, base, box, column, signboard, "
    "chest of drawers, counter, sand, sink, skyscraper, fireplace, refrigerator, grandstand, path, stairs, runway, "
    "case, pool table, pillow, screen door, stairway, river, bridge, bookcase, blind, coffee table, toilet, flower, "
    "book, hill, bench, countertop, stove, palm, kitchen island, computer, swivel chair, boat, bar, arcade machine, "
    "hovel, bus, towel, light, truck, tower, chandelier, awning, streetlight, booth, television receiver, airplane, "
    "dirt track, apparel, pole, land, bannister, escalator, ottoman, bottle, buffet, poster, stage, van, ship, "
    "fountain, conveyer belt, canopy, washer, plaything, swimming pool, stool, barrel, basket, waterfall, tent, bag, "
    "minibike, cradle, oven, ball, food, step, tank, trade name, microwave, pot, animal, bicycle, lake, dishwasher, "
    "screen, blanket, sculpture, hood, sconce, vase, traffic light, tray, ashcan, fan, pier, crt screen, plate, "
    "monitor, bulletin board, shower, radiator, glass, clock, flag"
)
_CITY = (
    "road, sidewalk, building, wall, fence, pole, traffic light, traffic sign, vegetation, terrain, sky, person, "
    "rider, car, truck, bus, train, motorcycle, bicycle"
)


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(", "))


CLASSES: dict[str, tuple[str, ...]] = {
    "voc20": _names(_VOC),
    "voc21": ("background", *_names(_VOC)),
    "context59": _names(_CONTEXT),
    "context60": ("background", *_names(_CONTEXT)),
    "coco-object": ("background", *_names(_COCO)),
    "coco-stuff": (*_names(_COCO), *_names(_STUFF)),
    "ade20k": _names(_ADE),
    "cityscapes": _names(_CITY),
}

# What a class is called to the text encoder, where that is not its name. LPOSS's and the CLIP-DINOiser code's words:
_LPOSS = {"diningtable": "dining table", "pottedplant": "potted plant"}
# SCLIP's, which NACLIP and ProxyCLIP took over; other names of a class behind semicolons.
_CLOTHES = "; ".join(f"person in {cloth}" for cloth in ("shirt", "jeans", "dress", "sweater", "skirt", "jacket"))
_NACLIP_VOC = {
    "boat": "ship",
    "diningtable": "table",
    "person": f"person; {_CLOTHES}",
    "tvmonitor": "television monitor; tv monitor; monitor; television; screen",
}
WORDS = ("lposs", "naclip")
_VOC_KINDS, _JOINED = ("voc20", "voc21"), ("coco-stuff", "ade20k", "cityscapes")


def _query(kind: str, name: str, words: str) -> str:
    if words == "lposs":
        if kind in _VOC_KINDS:
            return _LPOSS.get(name, name)
        return "aeroplane" if (kind, name) == ("coco-object", "airplane") else name
    if kind in _VOC_KINDS:
        return _NACLIP_VOC.get(name, name)
    if (kind, name) == ("coco-object", "person"):
        return f"person; {_CLOTHES}; body"
    return name.replace(" ", "") if kind in _JOINED else name


def query_words(kind: str, words: str) -> tuple[str, str]:
    """What a published data set's classes are called to a text encoder.

    Args:
        kind: key of CLASSES.
        words: one of WORDS: LPOSS's (also those of the CLIP-DINOiser and FLOSS code), or NACLIP's (those of SCLIP).

    Returns:
        The classes without the background as `parse_classes` reads them, and the background as --background does;
        for Context60 the background is a class like the others in both.
    """
    names = CLASSES[kind]
    if kind == "context60":
        return ", ".join(names), "none"
    background = {"voc21": "voc", "coco-object": "coco" if words == "lposs" else "voc"}.get(kind, "none")
    return ", ".join(_query(kind, name, words) for name in names if name != "background"), background


def check_names(names: list[str], where: str) -> None:
    """Raises UserError for an empty class list or one with the same name twice; `where` says which list it is."""
    if not names:
        raise UserError(where, "a class per line", "none")
    seen: dict[str, int] = {}
    for number, name in enumerate(names):
        key = re.sub(r"\s+", " ", name.strip().lower())
        if key in seen:
            raise UserError(where, "every class once", f"'{name}' as class {seen[key]} and as class {number}")
        seen[key] = number
