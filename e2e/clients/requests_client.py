import os
import sys

import requests

failed = False
for name, url in (("requests-https", os.environ["E2E_HTTPS"]), ("requests-http", os.environ["E2E_HTTP"])):
    try:
        answer = requests.get(url, timeout=20)
        print(name, answer.status_code, answer.text, flush=True)
    except Exception as error:
        failed = True
        print(name, "failed", error, flush=True)
sys.exit(1 if failed else 0)
