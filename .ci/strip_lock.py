"""Takes the download addresses out of uv.lock, so that the lock holds names, versions and hashes only and installs from
whatever index the machine's own client is set up for. usage: strip_lock.py uv.lock
"""

import re
import sys
from pathlib import Path

lock = Path(sys.argv[1])
text = lock.read_text()
text = re.sub(r'url = "https?://[^"]*/([^"/]+)"', r'filename = "\1"', text)
lock.write_text(re.sub(r'registry = "https?://[^"]*"', 'registry = "index"', text))
