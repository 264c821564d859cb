"""Words for COCO's 80 categories, as captions use them; `chair` makes the plurals.

The list is our own and shorter than the one published with CHAIR, so figures are close to published
ones but not equal.
"""

from collections.abc import Mapping
from types import MappingProxyType


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


COCO_SYNONYMS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "person": _words(
            "man woman boy girl child kid baby toddler infant guy lady gentleman people adult "
            "player batter pitcher catcher umpire skier snowboarder skateboarder surfer rider "
            "cyclist biker swimmer pedestrian officer policeman cop fireman soldier worker chef "
            "cook waiter waitress passenger spectator crowd couple mother father mom dad son "
            "daughter brother sister bride groom teenager student farmer cowboy human male "
            "female"
        ),
        "bicycle": ("bike", "cycle", "tricycle"),
        "car": ("automobile", "sedan", "suv", "taxi", "cab", "minivan", "convertible", "hatchback"),
        "motorcycle": ("motorbike", "motor bike", "motor cycle", "scooter", "moped"),
        "airplane": ("plane", "aeroplane", "air plane", "aircraft", "jet", "airliner", "biplane"),
        "bus": ("minibus", "double decker", "trolley bus", "school bus"),
        "train": ("locomotive", "tram", "trolley", "subway", "passenger train"),
        "truck": ("pickup", "lorry", "semi", "firetruck", "fire engine", "tow truck"),
        "boat": ("ship", "canoe", "kayak", "sailboat", "ferry", "yacht", "raft", "gondola"),
        "traffic light": ("traffic signal", "stoplight", "stop light", "street signal"),
        "fire hydrant": ("hydrant", "fireplug"),
        "stop sign": (),
        "parking meter": (),
        "bench": ("pew",),
        "bird": _words(
            "pigeon seagull gull duck goose swan owl eagle hawk parrot pelican crow sparrow "
            "chicken rooster hen penguin ostrich flamingo heron peacock turkey"
        ),
        "cat": ("kitten", "kitty", "feline", "tabby"),
        "dog": ("puppy", "pup", "canine", "poodle", "terrier", "bulldog", "retriever", "beagle"),
        "horse": ("pony", "foal", "colt", "mare", "stallion", "mustang"),
        "sheep": ("lamb", "ram", "ewe"),
        "cow": ("cattle", "calf", "bull", "ox", "oxen", "steer", "heifer", "bison"),
        "elephant": (),
        "bear": ("grizzly", "polar bear", "panda", "bear cub"),
        "zebra": (),
        "giraffe": (),
        "backpack": ("knapsack", "rucksack", "back pack"),
        "umbrella": ("parasol",),
        "handbag": ("purse", "hand bag"),
        "tie": ("necktie", "bow tie", "bowtie"),
        "suitcase": ("suit case", "luggage", "baggage", "briefcase"),
        "frisbee": ("flying disc",),
        "skis": ("ski",),
        "snowboard": ("snow board",),
        "sports ball": ("ball", "baseball", "basketball", "football", "tennis ball", "soccer ball"),
        "kite": (),
        "baseball bat": ("bat",),
        "baseball glove": ("glove", "mitt", "catcher 's mitt"),
        "skateboard": ("skate board", "longboard"),
        "surfboard": ("surf board", "boogie board"),
        "tennis racket": ("racket", "racquet", "tennis racquet"),
        "bottle": (),
        "wine glass": ("goblet", "wineglass"),
        "cup": ("mug", "teacup"),
        "fork": (),
        "knife": ("pocketknife",),
        "spoon": (),
        "bowl": (),
        "banana": (),
        "apple": (),
        "sandwich": ("burger", "hamburger", "cheeseburger", "panini", "sub"),
        "orange": ("tangerine", "clementine"),
        "broccoli": (),
        "carrot": (),
        "hot dog": ("hotdog",),
        "pizza": (),
        "donut": ("doughnut", "bagel"),
        "cake": ("cupcake", "cheesecake"),
        "chair": ("stool", "armchair", "recliner"),
        "couch": ("sofa", "loveseat", "futon"),
        "potted plant": ("houseplant", "plant"),
        "bed": ("bunk bed", "mattress"),
        "dining table": ("table", "desk"),
        "toilet": ("urinal", "toilet seat", "commode"),
        "tv": ("television", "tv set", "flat screen"),
        "laptop": ("laptop computer", "notebook computer", "macbook"),
        "mouse": ("computer mouse",),
        "remote": ("remote control", "controller", "wii remote"),
        "keyboard": (),
        "cell phone": ("cellphone", "phone", "mobile phone", "smartphone", "iphone"),
        "microwave": ("microwave oven",),
        "oven": ("stove", "range", "stove top oven"),
        "toaster": (),
        "sink": (),
        "refrigerator": ("fridge", "freezer"),
        "book": ("novel", "textbook"),
        "clock": ("clock tower",),
        "vase": (),
        "scissors": ("shears",),
        "teddy bear": ("teddy", "stuffed bear"),
        "hair drier": ("hair dryer", "hairdryer", "blow dryer"),
        "toothbrush": ("tooth brush",),
    }
)
ANIMALS = frozenset(
    {"bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe"}
)
# Phrases that contain the name of a category but mean something else.
NO_OBJECT = (
    "street light",
    "table tennis",
    "tennis table",
    "train station",
    "bus stop",
    "car seat",
)
PLURALS: Mapping[str, str] = MappingProxyType(
    {
        "person": "persons",
        "people": "people",
        "child": "children",
        "mouse": "mice",
        "knife": "knives",
        "pocketknife": "pocketknives",
        "calf": "calves",
        "goose": "geese",
        "ox": "oxen",
        "sheep": "sheep",
        "cattle": "cattle",
        "aircraft": "aircraft",
        "luggage": "luggage",
        "baggage": "baggage",
        "skis": "skis",
        "scissors": "scissors",
        "broccoli": "broccoli",
        "human": "humans",
    }
)
