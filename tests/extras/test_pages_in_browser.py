"""report.html in a real browser: opens from disk without a network, without errors, on a wide screen and on a narrow one."""

import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By

from varlab.analysis.pages import Section, page

ROOT = Path(__file__).resolve().parents[2]
MEASURE = (
    "env=frozenlake policy=softmax_table phi=[total_return,reward_to_go,value_baseline] values=exact n=400 reference=exact"
)


def run(script, *overrides, cwd):
    command = [sys.executable, ROOT / "scripts" / script, *overrides]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr


@functools.cache
def program(name):
    path = shutil.which(name)
    assert path, f"{name} was expected; install it (on Debian and Ubuntu: apt install chromium chromium-driver)"
    return path


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium that reaches no host at all and keeps what its console says."""
    options = webdriver.ChromeOptions()
    options.binary_location = program("chromium")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options, webdriver.ChromeService(program("chromedriver")))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The page of a measurement and that of a table of claims, each written by its script."""
    folder = tmp_path_factory.mktemp("pages")
    run("measure.py", *MEASURE.split(), f"out={folder / 'run'}", cwd=folder)
    (measured,) = (folder / "run").rglob("report.html")
    run("claims.py", "claims=[CH-1]", "budget=smoke", "cache=cache", "out=claims", cwd=folder)
    return {"run": measured, "claims": folder / "claims" / "report.html"}


def opened(browser, path, width=1280):
    """Open a page at a width in pixels and return (console messages, addresses asked for)."""
    browser.get_log("browser"), browser.get_log("performance")  # what came before
    browser.set_window_size(width, 900)
    browser.get(path.resolve().as_uri())
    said = [entry["message"] for entry in browser.get_log("browser")]
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    return said, asked


def faults(browser, path, width=1280):
    """Everything that a reader would call broken."""
    said, asked = opened(browser, path, width)
    found = [f"console: {x}" for x in said]
    found += [f"asks for {x[:80]}" for x in asked if not x.startswith(("data:image/png", path.resolve().as_uri()))]
    for image in browser.find_elements(By.TAG_NAME, "img"):
        if not browser.execute_script("return arguments[0].complete && arguments[0].naturalWidth > 200", image):
            found.append(f"picture not shown: {image.get_attribute('alt')[:60]}")
    for link in browser.find_elements(By.CSS_SELECTOR, "nav a"):
        if not browser.find_elements(By.ID, link.get_attribute("href").split("#")[1]):
            found.append(f"link to nowhere: {link.text}")
    if browser.execute_script("return document.documentElement.scrollWidth > document.documentElement.clientWidth"):
        found.append("wider than the window")
    return found


@pytest.mark.parametrize("width", [1280, 480])
@pytest.mark.parametrize("name", ["run", "claims"])
def test_the_page_opens_from_disk_whole(browser, pages, name, width):
    assert faults(browser, pages[name], width) == []
    assert len(browser.find_elements(By.TAG_NAME, "img")) >= (3 if name == "run" else 1)
    assert all(x.is_displayed() and x.size["height"] > 20 for x in browser.find_elements(By.TAG_NAME, "section"))


def test_the_page_of_a_run_shows_the_numbers_of_its_summary(browser, pages):
    opened(browser, pages["run"])
    summary = pd.read_csv(pages["run"].parent / "summary.csv")
    table = browser.find_element(By.TAG_NAME, "table").text
    assert all(phi in table for phi in summary["phi"])
    assert f"{summary['n'][0]:,}" in browser.find_element(By.TAG_NAME, "body").text


def test_outcomes_of_claims_are_coloured_and_sections_are_reached_by_links(browser, pages):
    opened(browser, pages["claims"])
    table = pd.read_csv(pages["claims"].parent / "table.csv")
    shown = [x.text for x in browser.find_elements(By.CSS_SELECTOR, "#s1 td.holds, #s1 td.violated, #s1 td.undecided")]
    assert shown == list(table["outcome"])
    for link in browser.find_elements(By.CSS_SELECTOR, "nav a"):
        link.click()
        target = browser.find_element(By.ID, link.get_attribute("href").split("#")[1])
        top = browser.execute_script("return arguments[0].getBoundingClientRect().top", target)
        bottom = browser.execute_script("return window.innerHeight + window.scrollY >= document.body.scrollHeight - 2")
        assert -2 <= top < 40 or bottom, link.text


def test_what_is_broken_would_be_noticed(browser, tmp_path):
    """Text that is code, a picture that is none, an address outside, a line too long: each is a fault, or stays text."""
    text = page("<script>console.error('run')</script>", "lead", [Section("one", ["x"], figures=[("broken picture", b"no PNG")])])
    path = tmp_path / "broken.html"
    path.write_text(text, encoding="utf-8")
    assert faults(browser, path) == ["picture not shown: broken picture"]
    path.write_text(text.replace("<body>", '<body><img src="http://example.org/x.png"><pre>' + "wide " * 400), encoding="utf-8")
    found = faults(browser, path)
    assert any(x.startswith("asks for http://example.org") for x in found) and "wider than the window" in found
    assert any(x.startswith("console: http://example.org") for x in found)
