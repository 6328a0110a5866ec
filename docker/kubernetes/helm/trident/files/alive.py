import urllib.error, urllib.request
urllib.request.urlopen("http://127.0.0.1:8000/v2/health/live", timeout=4)
try:
    urllib.request.urlopen("http://127.0.0.1:8081/live", timeout=4)
except urllib.error.HTTPError:
    raise  # the engine stands still
except OSError:
    pass  # the gateway has a probe of its own
