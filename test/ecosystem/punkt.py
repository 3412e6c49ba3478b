"""Writes the data that NLTK's sentence splitter wants and would fetch from the network, with
NLTK's own writer: ``punkt.py DIRECTORY``. It knows only a few abbreviations."""
import sys
from pathlib import Path

from nltk.tokenize.punkt import PunktParameters, save_punkt_params

ABBREVIATIONS = {
    "english": {"dr", "mr", "mrs", "st", "p.m", "a.m", "j", "r"},
    "german": {"dr", "z.b", "bzw", "str"},
}

tokenizers = Path(sys.argv[1], "tokenizers")
(tokenizers / "punkt").mkdir(parents=True, exist_ok=True)  # the plugins look for the older data, too, and never read it
(tokenizers / "punkt_tab").mkdir(exist_ok=True)
for language, abbreviations in ABBREVIATIONS.items():
    parameters = PunktParameters()
    parameters.abbrev_types = abbreviations
    save_punkt_params(parameters, str(tokenizers / "punkt_tab" / language))
