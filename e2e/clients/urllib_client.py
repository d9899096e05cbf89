import os
import sys
import urllib.request

failed = False
for name, url in (("urllib-https", os.environ["E2E_HTTPS"]), ("urllib-http", os.environ["E2E_HTTP"])):
    try:
        with urllib.request.urlopen(url, timeout=20) as answer:
            print(name, answer.status, answer.read().decode(), flush=True)
    except Exception as error:
        failed = True
        print(name, "failed", error, flush=True)
sys.exit(1 if failed else 0)
