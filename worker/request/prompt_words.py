"""The word tables of `worker.request.prompt`: camera moves, what a prompt is about, what fills each slot, languages.

Names are those of what a pattern finds. An entry of a table is a regular expression, matched as whole words.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

CAMERA_MOTIONS: Mapping[str, str] = MappingProxyType(
    {
        "pan_left": "camera pans left",
        "pan_right": "camera pans right",
        "pan_up": "camera tilts up",
        "pan_down": "camera tilts down",
        "zoom_in": "camera zooms in",
        "zoom_out": "camera zooms out",
        "dolly_in": "dolly in, camera pushes forward",
        "dolly_out": "dolly out, camera pulls back",
        "orbit_left": "camera orbits left around the subject",
        "orbit_right": "camera orbits right around the subject",
        "crane_up": "crane shot, camera rises",
        "crane_down": "crane shot, camera descends",
        "static": "static shot, fixed camera",
        "handheld": "handheld camera, subtle natural shake",
    }
)


def _entries(table: str) -> tuple[str, ...]:
    """The entries of a word table: separated by white space, an underscore inside one stands for a space."""
    return tuple(entry.replace("_", " ") for entry in table.split())


def _any(table: str) -> re.Pattern[str]:
    """Finds any entry (a regular expression) as whole words: the knight is no night, a flight no light."""
    return re.compile(rf"\b(?:{'|'.join(_entries(table))})\b", re.IGNORECASE)


# Camera moves. A bare "pan left" may be a frying pan, so a move counts only after "camera", at the start of a clause
# or after an adjective of camera work; one that is missed is merely said twice. Negated moves match none of these.
_AFTER_CAMERA = r"\b(?:camera|shot)(?: (?:\w+ly|then|is|starts?|begins?|to|and))* "
_UNAIDED = r"(?:(?:^|[.,;:!?] ?)(?:\w+ly |then |camera )?|(?<!\bno )\b(?:slow|smooth|gentle|quick|whip|steady|subtle) )"
_AFFIRMED = r"(?<!\bno )(?<!\bnot )(?<!\bnot a )\b"


def _move(verbs: str, command: str, tail: str) -> re.Pattern[str]:
    return re.compile(rf"(?:{_AFTER_CAMERA}(?:{verbs})|{_UNAIDED}(?:{command})){tail}\b", re.IGNORECASE)


def _sideways(verbs: str, command: str, side: str, other: str) -> re.Pattern[str]:
    between = rf"(?: (?:\w+ly|to|the|towards?|from {other}|{other}(?= to)|around|it|him|her|them|subject))*"
    return _move(verbs, command, rf"{between} {side}(?:wards?)?(?! to(?: the)? {other}\b| (?:on|in|behind)\b)")


_PAN, _TILT, _ZOOM = ("pan(?:s|ning)?", "pan"), ("(?:pan|tilt)(?:s|n?ing)?", "pan|tilt"), ("zoom(?:s|ing)?", "zoom")
_ORBIT = ("(?:orbit|arc|circl)(?:e?s?|ing)", "(?:orbit|arc|circle)(?: shot)?")
_DOLLY, _INWARDS = r"doll(?:y|ies|ying)", r"(?:in(?! (?:an?|the|circles?)\b)|forwards?|closer)"
_LY = r"(?: \w+ly)?"
MOVES: Mapping[str, re.Pattern[str]] = {
    "pan_left": _sideways(*_PAN, "left", "right"),
    "pan_right": _sideways(*_PAN, "right", "left"),
    "pan_up": _move(*_TILT, rf"{_LY} up(?:wards?)?"),
    "pan_down": _move(*_TILT, rf"{_LY} down(?:wards?)?"),
    "zoom_in": _move(*_ZOOM, rf"{_LY} in"),
    "zoom_out": _move(*_ZOOM, rf"{_LY} out"),
    "dolly_in": _move(rf"{_DOLLY}|push(?:es|ing)?|mov(?:es?|ing)", "dolly|push", rf"{_LY} {_INWARDS}"),
    "dolly_out": _move(rf"{_DOLLY}|pull(?:s|ing)?", "dolly|pull", rf"{_LY} (?:out|back|backwards?|away)"),
    "orbit_left": _sideways(*_ORBIT, "left", "right"),
    "orbit_right": _sideways(*_ORBIT, "right", "left"),
    "crane_up": _move(r"cran(?:es?|ing) up|ris(?:es?|ing)|ascend(?:s|ing)?", "crane up|rising crane", ""),
    "crane_down": _move(r"cran(?:es?|ing) down|descend(?:s|ing)?|lowers", "crane down|descending crane", ""),
    "static": re.compile(
        rf"{_AFFIRMED}(?:(?:static|fixed|stationary|locked(?: off| down)?) (?:camera|shot)|tripod shot|on a tripod"
        r"|no camera (?:movement|motion)|camera (?:(?:is|remains|stays|holds) )?(?:static|fixed|still|steady))\b",
        re.IGNORECASE,
    ),
    "handheld": re.compile(
        rf"{_AFFIRMED}(?:hand ?held (?:camera|shot|footage|filming|video)|(?:shot|filmed) hand ?held)\b", re.IGNORECASE
    ),
}
OWN_MOVES = {
    name: re.compile(rf"\b{re.escape(phrase)}(?= ?(?:$|[^\w\s]))", re.IGNORECASE)
    for name, phrase in CAMERA_MOTIONS.items()
}


# What a prompt is about, where that decides the words that suit it.
_DRAWN_WORDS = r"""anime manga chibi ghibli cartoons? comics? pixel_art (?:8|16)_?bit water_?colou?r claymation
    plasticine origami voxels? lego stop_?motion 3d cgi render(?:ed|ing)? pixar disney illustrat\w+ animat\w+ painting
    painted gouache crayon sketch\w* (?:pencil|line|charcoal|chalk)_(?:art|drawings?) drawing_of hand_?drawn cel_shad\w+
    low_?poly puppets? paper_?(?:cut|craft)\w* ukiyo_e ink_wash vector storybook stained_glass unreal_engine octane
    video_game minecraft oil_on in_the_style_of \w*impressionis\w+ cubis\w+ fresco pop_art doodle \d+(?:girl|boy)s?"""
_MONOCHROME_WORDS = r"""black_(?:and|&)_white b_?&_?w monochrom\w+ noir gr[ae]y_?scale sepia silent_film manga ink_wash
    sketch\w* (?:pencil|line|charcoal)_(?:art|drawings?)"""
_DRAWN = _any(_DRAWN_WORDS)
# Such pictures bring their own light, lens and colours.
RAW_FOOTAGE = _any(r"""vhs camcorder cctv surveillance security_(?:camera|footage) (?:web|dash|body)_?cam found_footage
    home_video phone_(?:video|footage|camera) super_?8 newsreel archival screen_recording gameplay night_vision thermal
    x_?ray infrared microscop\w+ go_?pro""")
_STUDIO = _any(r"""products? packshot studio_(?:shot|photo|backdrop|background) in_a_studio
    (?:white|black|gr[ae]y|plain|solid|seamless)_(?:background|backdrop)""")
_DARK = _any(r"""nights? night_?time midnight tonight nightfall starry milky_way aurora full_moon darkness in_the_dark
    caves? dark_(?:room|alley|forest|cave|street|sky|corridor|hallway|tunnel) noir horror haunted gothic cyberpunk
    dungeon""")
_UNDERWATER = _any(
    r"under_?water undersea coral_reef scuba deep_sea seabed ocean_floor submarine beneath_the_(?:waves|sea|ocean)"
)
_SPACE = _any(r"""(?:in|through|outer|deep)_space galax\w+ nebula asteroids? astronauts?
    space_?(?:ships?|craft|station|walk) lunar on_(?:the_moon|mars) planets?""")
_STAGE = _any(r"concert night_?club disco rave on_stage theat(?:er|re)")
_GREY_WEATHER = _any(
    r"rain(?:s|y|ing)? (?:thunder|snow)?storms? stormy fog foggy mist misty blizzard snowing snowfall cloudy"
)
_INDOORS = _any(r"""indoors? interior (?:bed|bath|class|ball|(?:living|dining|throne|hotel|waiting)_)?room kitchen
    office hallway corridor library museum church cathedral restaurant caf[eé] bar shop store gym hospital lab
    laboratory warehouse factory garage elevator subway""")
_PEOPLE = _any(r"""m[ae]n wom[ae]n girls? boys? child children kids? baby person couple s?he his her dancer knight chef
    portrait dogs? cats? puppy kitten horse bird""")
_VISTA = _any(r"""landscape mountains? valley canyon skyline city_?(?:scape)? desert ocean sea coast coastline
    glacier waterfall horizon crowds? army battle\w* stadium traffic herd fleet galax\w+ nebula planets? island
    village volcano""")
# What shows that the words fill a slot. Whatever a word says there, even in passing, nothing is added beside it.
_MOTION_SAID = _any(r"""slow\w* slo_?mo time_?lapse hyper_?lapse bullet_time freeze\w* frozen still motionless
    static fixed locked tripod stationary motions? movements? moving gentl[ey] gradual\w* quick\w* fast(?!_food)
    rapid\w* swift\w* sudden\w* smooth\w* grace\w* fluid\w* speed\w* stead\w+ dynamic\w* energetic\w* jerky
    glitch\w* loop\w* boomerang revers\w+ backwards cinemagraph stop_?motion claymation plasticine pixel_art
    (?:8|16)_?bit lego puppets?""")
_LIGHTING_SAID = _any(r"""lighting lightning
    lights?(?!_(?:blue|green|pink|brown|gr[ae]y|yellow|purple|rain|snow|breeze|wind|hair|skin|dress))
    (?:sun|moon|day|candle|fire|lamp|star|torch|spot|back|rim|head|street|flash|twi|sky)lights?
    (?:sun|moon|star|candle|fire|back|under|rim)?lit illuminat\w+ glow\w* neon shad(?:ow|e)\w* silhouettes?
    (?:golden|blue|magic)_hour sunset sunrise dusk dawn evening noon midday suns? sunny sunshine sunbeams? rays?
    rembrandt chiaroscuro (?:low|high)_key volumetric overcast lamps? lanterns? candles? torch\w* campfire bonfire
    fireplace fire(?!_(?:truck|engine|station|hydrant|alarm)) lava explo\w+ flames? burning fireworks? lasers? strobes?
    fluorescent softbox dim""")
_LENS_SAID = _any(r"""\d+_?mm lens\w* anamorphic bokeh depth_of_field focus\w* macro fish_?eye telephoto wide_angle
    close_?ups? aerial (?:wide|medium|long|full|establishing|master|two|overhead|profile)_shot drone top_down
    bird'?s?_?eye eye_level pov (?:low|high|dutch|camera)_angle point_of_view first_person over_the_shoulder compos\w+
    fram(?:ed|ing) rule_of_thirds symmetr\w+ cent(?:er|re)ed panoram\w+ selfie tilt_shift isometric
    (?:side|front|top|rear|back)_view (?:viewed|seen)_from split_screen full_body f/\d(?:\.\d)?""")
_COLOUR_SAID = _any(rf"""grad(?:e|ed|ing) colou?r\w* teal_and_orange kodak portra bleach_bypass \w*saturat\w+ vibrant
    vivid muted pastels? faded palette tones? toned hues? tints? tinted technicolor hdr psychedelic iridescent
    {_MONOCHROME_WORDS}""")
_STYLE_SAID = _any(rf"""cinematic\w* styl\w+ films? movie photo_?real\w* photo(?:graph(?:y|ic))? hyper_?real\w*
    realis\w+ documentary footage vintage retro \w+punk vaporwave synthwave cottagecore surreal\w* fantasy sci_?fi
    horror noir gothic vlog commercial advert\w* editorial trailer music_video aesthetic abstract minimalis\w+
    psychedelic western \d+0s {_DRAWN_WORDS}""")


@dataclass(frozen=True, slots=True)
class Slot:
    """One slot of the formula: what fills it, the phrase for each kind of picture, and the phrase for all others."""

    said: re.Pattern[str]
    choices: tuple[tuple[re.Pattern[str], str], ...]
    default: str


_LIVING, _PHOTO = "lifelike motion", "35mm lens, shallow depth of field"
MOTION = Slot(_MOTION_SAID, ((_DRAWN, "fluid motion"), (_PEOPLE, _LIVING), (_STUDIO, "subtle motion")), _LIVING)
LIGHTING = Slot(
    _LIGHTING_SAID,
    (
        (_UNDERWATER, "diffused underwater light"),
        (_SPACE, "high-contrast lighting"),
        (_STAGE, "dramatic stage lighting"),
        (_DARK, "low-key lighting"),
        (_STUDIO, "soft even studio lighting"),
        (_GREY_WEATHER, "soft overcast light"),
        (_INDOORS, "soft ambient lighting"),
        (_DRAWN, "soft lighting"),
    ),
    "soft natural lighting",
)
LENS = Slot(
    _LENS_SAID,
    ((_DRAWN, "balanced composition"), (_STUDIO, "centered composition"), (_PEOPLE, _PHOTO), (_VISTA, "wide shot")),
    _PHOTO,
)
COLOUR = Slot(
    _COLOUR_SAID, ((_DRAWN, "harmonious color palette"), (_STUDIO, "neutral color grade")), "balanced color grade"
)
STYLE = Slot(_STYLE_SAID, ((_PEOPLE, "cinematic style"), (_STUDIO, "clean commercial style")), "cinematic style")
# In the order of the formula.
SLOTS = (MOTION, LIGHTING, LENS, COLOUR, STYLE)

# Words that tell English from its neighbours; words that several languages share ("a", "in", "die") are left out.
ENGLISH = _entries("""the of and with from by at into through over under across near behind beside between against
    toward towards while his her their its this that some two three up down out off are inside around man woman women
    girl boy people person child children kid dog puppy cat kitten horse bird fish car city street road forest mountain
    mountains river lake ocean beach sky house room kitchen tree trees flower flowers water snow rain night light shot
    eyes hair dress red blue green white black yellow golden old young beautiful big little small huge tiny tall dark
    bright empty wooden knight queen wizard soldier ship spaceship creature walks runs stands sits flies looks turns
    dances jumps swims waves smiles drives cooks plays falls rises moves cup bottle glass coffee book window garden
    field storm fire clouds leaves smoke sunset sunrise cartoon close slow deep underwater waterfall bear rabbit whale
    eagle owl castle tower bridge""")
FOREIGN = _entries("""el la los las un una unos unas del en con y que por para su sus al se es le les des du et dans
    avec sur une qui est au aux ses leur der das den dem ein eine einen einem einer und mit auf im ist von zu zum zur am
    bei durch il lo gli di che per sul sulla nel nella e della dei delle uno um uma em com da dos na nas ao pela pelo
    het een van de met op naar zijn och ett som med til og et av w z i się jest bir ve ile yang dan dengan sebuah ng si
    ang sa nu pe cu""")
