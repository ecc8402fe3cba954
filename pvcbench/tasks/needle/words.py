"""Words for needles: common nouns of one or two tokens as values, and others as keys."""

WORDS = """
anchor bamboo banjo basket blanket bottle butter button cactus camera candle carpet carrot castle cherry cookie
copper coral cotton crayon crystal curtain dagger daisy diamond dolphin donkey dragon eagle falcon feather garlic
ginger giraffe glove goose guitar hammer hazel helmet honey igloo island ivory jacket jasmine jelly jungle kitten
koala ladder lantern lemon lizard lobster locket magnet mango maple marble meadow melon mirror mitten monkey
mushroom napkin needle noodle olive orchid oyster panda parrot peacock peanut pebble pencil penguin pepper piano
pigeon pillow pirate planet pretzel pumpkin puppet puzzle quilt rabbit raven ribbon rocket saddle saffron salmon
sandal sapphire scarf seashell shadow shovel silver spider spoon squirrel statue sunflower swan tiger tomato
tractor trumpet tulip tunnel turnip turtle umbrella vase velvet violin wagon walnut walrus whistle willow
window wizard zebra
""".split()

KEYS = """
amber apple autumn beacon birch canyon cedar comet delta ember fjord forest galaxy garden glacier harbor horizon
indigo jade juniper lagoon lavender lotus lunar mesa mist nectar nova oasis ocean onyx opal orbit pearl pine prairie
quartz quiver reef ridge river ruby sierra solstice spruce summit thistle thunder topaz tundra valley vector vertex
violet willow winter yarrow zenith zephyr
""".split()
