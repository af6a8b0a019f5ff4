"""Chromium without a window, driven over a pipe by its DevTools protocol."""

import contextlib
import itertools
import json
import os
import shutil
import subprocess


def found():
    """The path of a browser, or None."""
    return next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )


class Page:
    """A page that is open."""

    def __init__(self, read, write):
        self._read, self._write, self._numbers = read, write, itertools.count(1)
        self._session, self.events = None, []
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        attached = self._call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        self._call("Page.enable")

    def open(self, url):
        self._call("Page.navigate", url=url)

    def look_like(self, width, scheme):
        """A screen of some width, in a light or dark scheme; what it logs is kept in ``events``."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self._call("Emulation.setDeviceMetricsOverride", **size)
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self._call("Emulation.setEmulatedMedia", features=[feature])
        self._call("Log.enable")
        self._call("Runtime.enable")

    def run(self, script):
        """What a script's last expression, or the promise that it is, gives."""
        told = self._call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in told, told["exceptionDetails"]
        return told["result"].get("value")

    def _call(self, method, **params):
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        data = b""
        while True:
            while b"\0" not in data:
                part = os.read(self._read, 1 << 16)
                assert part, "the browser is gone"
                data += part
            first, _, data = data.partition(b"\0")
            answer = json.loads(first)
            if "method" in answer:
                self.events.append(answer)
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]


@contextlib.contextmanager
def page(profile):
    """A page of a browser of its own."""
    (theirs_in, write), (read, theirs_out) = os.pipe(), os.pipe()
    flags = "--headless --no-sandbox --disable-gpu --disable-dev-shm-usage --remote-debugging-pipe"
    command = [found(), *flags.split(), f"--user-data-dir={profile}"]
    # The protocol's descriptors are 3 and 4.
    pipes = f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}'
    process = subprocess.Popen(
        ["bash", "-c", pipes, "bash", *command],
        pass_fds=(theirs_in, theirs_out),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(theirs_in)
    os.close(theirs_out)
    try:
        yield Page(read, write)
    finally:
        os.close(write)
        os.close(read)
        process.kill()
        process.wait()
