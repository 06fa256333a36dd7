"""requirements.py [EXTRA...]: print what setup.cfg says hpcimg needs to run, with these extras."""

import configparser
import sys

parser = configparser.ConfigParser()
parser.read("setup.cfg")
extras = [parser["options.extras_require"][name] for name in sys.argv[1:]]
print(parser["options"]["install_requires"], *extras)
