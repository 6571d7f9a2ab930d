"""A page in a real browser: headless Chromium, driven over its DevTools protocol."""

import json
import shutil
import subprocess
import time
import urllib.request

import pytest
import websocket

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
# A busy machine is not a broken page: seconds until a wait fails, not seconds that it takes
PATIENCE = 300
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-allow-origins=*",
    "--remote-debugging-port=0",
]


class Browser:
    """One tab.

    `open(url)` loads a page and collects its console errors, `run(js)` evaluates an expression.
    """

    def __init__(self, profile, width=1200, height=900, online=False):
        self.online = online  # a page of a server of ours may ask it for things
        self.process = subprocess.Popen(
            [
                CHROMIUM,
                *FLAGS,
                f"--user-data-dir={profile}",
                f"--window-size={width},{height}",
                "about:blank",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        port = profile / "DevToolsActivePort"
        for _ in range(10 * PATIENCE):
            if port.is_file() and port.read_text().strip():
                break
            time.sleep(0.1)
        address = f"http://127.0.0.1:{port.read_text().splitlines()[0]}/json"
        tab = next(t for t in json.load(urllib.request.urlopen(address)) if t["type"] == "page")
        self.socket, self.count, self.errors = (
            websocket.create_connection(tab["webSocketDebuggerUrl"], timeout=PATIENCE),
            0,
            [],
        )
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method, **params):
        self.count += 1
        self.socket.send(json.dumps({"id": self.count, "method": method, "params": params}))
        while True:
            message = json.loads(self.socket.recv())
            self.note(message)
            if message.get("id") == self.count:
                assert "error" not in message, message
                return message["result"]

    def note(self, message):
        method, params = message.get("method"), message.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.errors.append(params["exceptionDetails"].get("text", ""))
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(params["entry"]["text"])
        elif method == "Runtime.consoleAPICalled" and params["type"] == "error":
            self.errors.append(str(params["args"]))
        elif (
            not self.online
            and method == "Network.requestWillBeSent"
            and params["request"]["url"].startswith("http")
        ):
            self.errors.append(f"asked the network for {params['request']['url']}")

    def open(self, url, width=1200):
        self.errors.clear()
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=900,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        self.send("Page.navigate", url=url)
        for _ in range(200):
            if self.run("document.readyState") == "complete" and self.run("location.href") == url:
                break
            time.sleep(0.05)

    def run(self, expression):
        return self.send("Runtime.evaluate", expression=expression, returnByValue=True)[
            "result"
        ].get("value")

    def wait(self, expression, seconds=PATIENCE):
        """Poll until an expression is truthy, and return it."""
        end = time.time() + seconds
        while time.time() < end:
            value = self.run(expression)
            if value:
                return value
            time.sleep(0.2)
        raise AssertionError(f"not true after {seconds} s: {expression}\n{self.errors[-3:]}")

    def close(self):
        self.socket.close()
        self.process.kill()
        self.process.wait()
