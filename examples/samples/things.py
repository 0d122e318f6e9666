"""Ten everyday things, drawn: the samples of the tiny_vgg models."""

from __future__ import annotations

import math
from collections.abc import Callable

from PIL import Image

from picture import SIDE, Picture


def bell_pepper() -> Image.Image:
    """A green one on grey."""
    picture = Picture((196, 204, 208), 1)
    picture.fade(0, SIDE, (176, 186, 194), (214, 218, 220))
    picture.oval(68, 108, 46, 10, (146, 154, 158))
    picture.blur(3)
    for x, across, dark, light in ((38, 25, (16, 66, 10), (84, 152, 44)), (92, 25, (10, 52, 8), (60, 130, 34))):
        picture.ball(x, 66, across, 38, dark, light)
    picture.ball(66, 70, 28, 42, (18, 76, 12), (110, 180, 62))
    picture.blur(0.8)
    picture.line([(53, 40), (51, 70), (54, 104)], 2.2, (16, 70, 12))
    picture.line([(80, 40), (83, 70), (79, 104)], 2.2, (14, 60, 10))
    picture.oval(66, 34, 17, 7, (22, 84, 18))
    picture.line([(66, 34), (68, 22), (77, 14)], 8, (92, 142, 58))
    picture.blur(0.8)
    for x, y, tall in ((36, 50, 11), (61, 52, 13), (90, 54, 8)):
        picture.oval(x, y, 3, tall, (196, 228, 160), 12)
    picture.blur(0.9)
    return picture.done()


def espresso() -> Image.Image:
    """A white cup on a saucer and a wooden table, from above."""
    picture = Picture((92, 54, 28), 2)
    for row in range(0, SIDE, 4):
        picture.line([(0, row), (SIDE, row + picture.random.uniform(-3, 3))], 2, picture.varied((84, 48, 24), 14))
    picture.oval(68, 76, 60, 54, (48, 26, 12))
    picture.blur(3)
    picture.ball(63, 67, 58, 54, (168, 160, 150), (232, 228, 222))
    picture.oval(64, 70, 45, 41, (164, 156, 146))
    picture.blur(1.4)
    picture.line([(92, 44), (106, 30), (114, 38), (100, 54)], 6, (240, 237, 232))
    picture.ball(62, 64, 42, 39, (206, 198, 188), (255, 254, 250))
    picture.oval(62, 64, 36, 33, (92, 50, 22))
    picture.oval(62, 65, 34, 31, (184, 120, 62))
    picture.oval(62, 66, 30, 27, (152, 90, 42))
    picture.strew(70, (44, 50, 80, 84), (1, 4), [(186, 124, 66), (166, 102, 50), (132, 74, 32)], 0.7)
    picture.blur(1.1)
    return picture.done()


def koala() -> Image.Image:
    """Its face and shoulders, in a tree."""
    picture = Picture((150, 160, 140), 3)
    leaves = [(86, 110, 66), (200, 206, 200), (58, 72, 50), (236, 238, 236), (120, 132, 104)]
    picture.strew(200, (0, 0, SIDE, SIDE), (3, 10), leaves, 0.4)
    picture.blur(2.0)
    picture.line([(0, 122), (SIDE, 98)], 22, (104, 78, 60))
    picture.strew(120, (0, 100, SIDE, SIDE), (2, 6), [(92, 68, 52), (124, 94, 72), (76, 56, 46)], 0.3)
    grey = [(116, 108, 108), (96, 88, 90), (136, 128, 128), (78, 70, 72)]
    pale = [(196, 190, 188), (222, 218, 216), (166, 160, 158)]
    picture.fur(64, 122, 46, 40, grey)
    picture.fur(64, 122, 20, 24, pale)
    for x in (24, 104):
        picture.fur(x, 40, 19, 19, grey, 7)
        picture.fur(x, 44, 12, 11, pale, 6)
    picture.fur(64, 60, 37, 34, grey)
    picture.fur(64, 88, 20, 10, pale)
    for x in (45, 83):
        picture.oval(x, 55, 5.5, 5, (34, 24, 22))
        picture.oval(x - 1.5, 53.5, 1.6, 1.6, (240, 240, 240))
    picture.ball(64, 70, 11, 17, (20, 18, 22), (92, 88, 96))
    picture.line([(54, 92), (64, 95), (74, 92)], 2, (60, 50, 52))
    picture.blur(0.6)
    return picture.done()


def ladybug() -> Image.Image:
    """On a leaf, from above."""
    picture = Picture((92, 148, 40), 4)
    picture.fade(0, SIDE, (116, 172, 50), (62, 118, 30))
    for start in range(-96, SIDE, 16):
        picture.line([(64, start + 64), (SIDE, start + 16)], 1.4, (128, 184, 70))
        picture.line([(64, start + 64), (0, start + 16)], 1.4, (128, 184, 70))
    picture.line([(64, 0), (64, SIDE)], 3, (146, 196, 86))
    picture.blur(1.6)
    picture.oval(70, 76, 38, 42, (40, 80, 20))
    picture.blur(3)
    for side in (-1, 1):
        for y, reach in ((46, 10), (70, 14), (92, 10)):
            picture.line([(64 + side * 30, y), (64 + side * (36 + reach), y + reach - 10)], 3, (24, 20, 18))
        picture.line([(64 + side * 6, 26), (64 + side * 15, 13)], 2, (24, 20, 18))
    picture.ball(64, 34, 20, 15, (12, 10, 10), (70, 66, 66))
    picture.ball(64, 72, 37, 40, (128, 12, 6), (244, 76, 34))
    picture.line([(64, 34), (64, 111)], 2, (30, 12, 8))
    for x, y, radius in ((64, 46, 7), (44, 60, 7), (84, 60, 7), (40, 82, 6.5), (88, 82, 6.5), (54, 98, 5), (75, 98, 5)):
        picture.oval(x, y, radius, radius, (20, 12, 12))
    for x in (53, 75):
        picture.oval(x, 31, 4.5, 4, (240, 236, 226))
    picture.oval(48, 50, 5, 3, (255, 206, 186), -30)
    picture.blur(0.7)
    return picture.done()


def lifeboat() -> Image.Image:
    """At sea, from the side."""
    picture = Picture((150, 166, 180), 5)
    picture.fade(0, 60, (168, 182, 196), (200, 206, 212))
    picture.fade(60, SIDE, (98, 116, 132), (66, 84, 102))
    picture.strew(260, (0, 62, SIDE, SIDE), (2, 8), [(120, 138, 152), (76, 94, 112), (154, 166, 176)], 0.16)
    picture.blur(0.8)
    picture.shape([(12, 66), (118, 58), (106, 86), (26, 88)], (212, 66, 26))
    picture.shape([(18, 78), (112, 72), (106, 86), (26, 88)], (24, 36, 76))
    picture.line([(12, 66), (118, 58)], 3, (244, 232, 220))
    picture.shape([(40, 64), (46, 44), (82, 42), (92, 61)], (232, 96, 36))
    picture.shape([(49, 48), (79, 46), (84, 54), (47, 56)], (38, 46, 60))
    for x in (58, 69):
        picture.line([(x, 46), (x, 56)], 2, (232, 96, 36))
    for line in ([(64, 43), (64, 16)], [(76, 42), (76, 24)], [(54, 26), (78, 24)], [(96, 60), (100, 46), (114, 44)]):
        picture.line(line, 1.6, (230, 230, 228))
    picture.oval(64, 15, 3, 3, (240, 240, 240))
    for x in (30, 36, 98, 104):
        picture.oval(x, 58, 3.5, 6, (226, 120, 30))
        picture.oval(x, 51, 2.6, 2.6, (226, 184, 150))
    picture.strew(110, (0, 82, SIDE, 96), (2, 6), [(236, 240, 242), (206, 216, 222)], 0.4)
    picture.blur(0.6)
    return picture.done()


def orange() -> Image.Image:
    """A whole one and a half one."""
    picture = Picture((232, 230, 224), 6)
    picture.fade(0, SIDE, (206, 208, 206), (240, 238, 232))
    picture.oval(70, 108, 56, 12, (176, 166, 150))
    picture.blur(4)
    picture.ball(48, 54, 42, 41, (206, 92, 6), (255, 178, 50))
    picture.strew(260, (22, 26, 74, 84), (0.5, 0.9), [(226, 118, 16), (250, 160, 44)])
    picture.blur(0.8)
    picture.oval(86, 84, 36, 35, (226, 116, 12))
    picture.oval(86, 84, 33, 32, (252, 232, 190))
    for number in range(10):
        edges = [number * math.pi / 5 + step * math.pi / 5 / 8 for step in range(1, 8)]
        arc = [(86 + 29 * math.cos(angle), 84 + 28 * math.sin(angle)) for angle in edges]
        tip = edges[3]
        picture.shape([(86 + 4 * math.cos(tip), 84 + 4 * math.sin(tip)), *arc], (248, 150, 34))
    picture.oval(48, 22, 4, 2.6, (96, 120, 40))
    picture.blur(0.7)
    return picture.done()


def pizza() -> Image.Image:
    """With salami, olives and basil."""
    picture = Picture((150, 104, 62), 7)
    for row in range(0, SIDE, 6):
        picture.line([(0, row), (SIDE, row)], 2.4, picture.varied((140, 94, 54), 12))
    picture.blur(1.5)
    picture.ball(64, 64, 63, 62, (150, 92, 40), (222, 170, 100))
    picture.oval(64, 64, 55, 54, (196, 84, 34))
    places = [(64 + 51 * far * math.cos(turn), 64 + 50 * far * math.sin(turn)) for far, turn in _spread(620, picture)]
    for x, y in places:
        radius = picture.random.uniform(1.5, 4)
        colours = [(244, 208, 122), (236, 186, 92), (250, 226, 160), (220, 140, 60), (206, 100, 44)]
        picture.oval(x, y, radius, radius * 0.8, picture.varied(picture.random.choice(colours), 12))
    for far, turn in [(0.0, 0.0), *((0.68, number * math.pi / 3.5 + 0.3) for number in range(7))]:
        x, y = 64 + 50 * far * math.cos(turn), 64 + 48 * far * math.sin(turn)
        picture.ball(x, y, 10, 9.4, (136, 30, 18), (206, 74, 46))
        for _ in range(7):
            spot = x + picture.random.uniform(-6, 6), y + picture.random.uniform(-6, 6)
            picture.oval(*spot, 1.2, 1, (232, 150, 110))
    for far, turn in [(0.36, number * math.pi / 3 + 0.9) for number in range(6)]:
        x, y = 64 + 50 * far * math.cos(turn), 64 + 48 * far * math.sin(turn)
        picture.oval(x, y, 4, 4, (34, 26, 28))
        picture.oval(x, y, 1.6, 1.6, (214, 160, 84))
    for far, turn in [(0.84, number * math.pi / 2.5 + 0.8) for number in range(5)]:
        picture.oval(64 + 48 * far * math.cos(turn), 64 + 48 * far * math.sin(turn), 6, 3, (58, 96, 34), turn * 70)
    picture.blur(0.6)
    return picture.done()


def red_panda() -> Image.Image:
    """Its face, before leaves."""
    picture = Picture((70, 104, 44), 8)
    picture.strew(170, (0, 0, SIDE, SIDE), (4, 11), [(58, 96, 36), (96, 132, 60), (34, 56, 24), (128, 158, 84)], 0.45)
    picture.blur(2.2)
    red = [(150, 72, 34), (176, 92, 46), (126, 56, 26), (196, 112, 62)]
    white = [(244, 238, 230), (226, 216, 204), (252, 248, 242)]
    dark = [(44, 26, 20), (62, 36, 26), (30, 18, 16)]
    picture.fur(64, 126, 48, 32, red)
    picture.fur(64, 128, 30, 20, dark)
    for x in (28, 100):
        picture.fur(x, 32, 15, 16, white, 6)
        picture.fur(x, 35, 8, 9, dark, 4)
    picture.fur(64, 64, 42, 36, red)
    for side in (-1, 1):
        picture.fur(64 + side * 31, 72, 12, 13, white, 4)
        picture.fur(64 + side * 18, 46, 6, 5, white, 3)
        picture.fur(64 + side * 21, 82, 6, 12, [(140, 62, 30), (112, 48, 24)], 3)
    picture.fur(64, 80, 15, 13, white, 4)
    for x in (46, 82):
        picture.oval(x, 60, 5.5, 5.5, (22, 14, 12))
        picture.oval(x - 1.5, 58, 1.6, 1.6, (244, 244, 244))
    picture.ball(64, 73, 7.5, 5.5, (18, 14, 16), (84, 78, 80))
    picture.line([(64, 78), (64, 85)], 1.6, (70, 50, 44))
    picture.line([(56, 88), (64, 85), (72, 88)], 1.6, (70, 50, 44))
    picture.blur(0.5)
    return picture.done()


def school_bus() -> Image.Image:
    """On a road, from the side."""
    picture = Picture((150, 190, 226), 9)
    picture.fade(0, 70, (120, 170, 220), (206, 222, 234))
    picture.strew(90, (0, 40, SIDE, 62), (5, 10), [(62, 92, 46), (82, 112, 58), (46, 70, 36)], 0.8)
    picture.blur(1.6)
    picture.fade(94, SIDE, (120, 120, 122), (92, 92, 94))
    picture.oval(64, 104, 58, 7, (56, 56, 58))
    picture.blur(1.2)
    picture.box(6, 28, 104, 98, (246, 178, 12), 6)
    picture.box(98, 58, 124, 98, (242, 170, 10), 6)
    picture.box(6, 28, 104, 36, (250, 194, 40), 4)
    for left in range(11, 84, 15):
        picture.box(left, 42, left + 12, 57, (34, 40, 48), 1.5)
        picture.line([(left, 49.5), (left + 12, 49.5)], 1, (210, 154, 20))
    picture.box(88, 40, 102, 62, (52, 64, 76), 2)
    for y in (64, 73, 82):
        picture.line([(6, y), (104, y)], 1.6, (28, 24, 18))
    picture.line([(6, 96), (124, 96)], 2.4, (34, 30, 24))
    picture.box(112, 66, 124, 82, (40, 38, 36), 2)
    picture.oval(120, 88, 3, 3, (250, 244, 214))
    for x in (16, 100):
        picture.oval(x, 31, 2.4, 2.4, (196, 40, 24))
    for x in (30, 102):
        picture.oval(x, 99, 12, 12, (22, 22, 24))
        picture.oval(x, 99, 5.5, 5.5, (176, 172, 164))
    picture.blur(0.5)
    return picture.done()


def sport_car() -> Image.Image:
    """A red one on a road, from the side."""
    picture = Picture((190, 196, 202), 10)
    picture.fade(0, 62, (200, 208, 216), (222, 224, 226))
    picture.fade(62, SIDE, (128, 130, 134), (98, 100, 104))
    picture.blur(1)
    picture.oval(64, 93, 60, 7, (40, 42, 46))
    picture.blur(1.8)
    body = [
        (4, 82),
        (6, 70),
        (22, 63),
        (40, 60),
        (54, 48),
        (74, 46),
        (90, 57),
        (114, 60),
        (124, 68),
        (124, 86),
        (8, 88),
    ]
    picture.shape(body, (200, 18, 22))
    picture.shape([(6, 78), (124, 74), (124, 86), (8, 88)], (142, 10, 16))
    picture.shape([(45, 60), (56, 50), (73, 48.5), (86, 58)], (26, 30, 38))
    picture.line([(66, 49), (67, 59)], 2, (200, 18, 22))
    picture.line([(14, 68), (48, 63), (112, 63)], 1.6, (250, 128, 120))
    picture.line([(70, 62), (72, 80)], 0.8, (110, 8, 12))
    picture.shape([(80, 70), (96, 68), (94, 76), (82, 78)], (36, 10, 12))
    picture.oval(15, 71, 6, 2.4, (250, 246, 228), -14)
    picture.box(118, 66, 124, 71, (90, 8, 10), 1)
    picture.line([(104, 57), (122, 55)], 2.6, (170, 14, 18))
    for x in (28, 102):
        picture.oval(x, 85, 13, 13, (20, 20, 22))
        picture.oval(x, 85, 8.5, 8.5, (150, 152, 156))
        for number in range(5):
            angle = number * math.pi * 0.4
            picture.line([(x, 85), (x + 8 * math.cos(angle), 85 + 8 * math.sin(angle))], 2.2, (72, 74, 78))
    picture.blur(0.5)
    return picture.done()


THINGS: tuple[Callable[[], Image.Image], ...] = (
    bell_pepper,
    espresso,
    koala,
    ladybug,
    lifeboat,
    orange,
    pizza,
    red_panda,
    school_bus,
    sport_car,
)


def _spread(count: int, picture: Picture) -> list[tuple[float, float]]:
    """Places in a disc, as shares of its radius and angles."""
    return [(math.sqrt(picture.random.random()), picture.random.uniform(0, 2 * math.pi)) for _ in range(count)]
