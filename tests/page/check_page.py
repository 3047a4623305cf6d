#!/usr/bin/env python3
"""Tests of the page of `walhalla status --html`, in headless Chromium.

    check_page.py [PAGE.html] [--screenshots DIR]

With a page, made from real data, what must hold for every page. Without one, the same for the sample pages, and what
the page must say about them. Needs Debian's chromium, chromium-driver and python3-selenium; CHROMIUM and CHROMEDRIVER
name others.
"""

import argparse
import json
import os
import pathlib
import re
import shutil
import sys
import tempfile
import time
import unittest

from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import sample  # noqa: E402

WIDTHS = (375, 768, 1440)
THEMES = ("light", "dark")
SCREENSHOTS = None
PAGE = None

# Of each text: its contrast with the nearest ground that is not transparent, as WCAG 2.2 counts it.
CONTRASTS = """
const channels = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
const light = ([r, g, b]) => { const [x, y, z] = [r, g, b].map((c) => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  return 0.2126 * x + 0.7152 * y + 0.0722 * z; };
const ground = (at) => { for (; at; at = at.parentElement) { const c = channels(getComputedStyle(at).backgroundColor);
  if (c.length === 3 || c[3] > 0) return c; } return [255, 255, 255]; };
const poor = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const text = walker.currentNode.textContent.trim(), at = walker.currentNode.parentElement;
  if (!text || at.closest('script, noscript, [hidden], option, :disabled') || !at.getClientRects().length) continue;
  const isDrawn = at.namespaceURI.endsWith('svg');
  const [a, b] = [light(channels(isDrawn ? getComputedStyle(at).fill : getComputedStyle(at).color)), light(ground(at))];
  const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  if (contrast < 4.5) poor.push(text.slice(0, 40) + ': ' + contrast.toFixed(2));
}
return poor;
"""

UNNAMED = """
const named = (at) => at.getAttribute('aria-label') || at.getAttribute('aria-labelledby') || at.textContent.trim()
  || [...(at.labels || [])].some((label) => label.textContent.trim());
return [...document.querySelectorAll('button, a, input, select, [role=slider], [role=region], [role=group], [role=search], nav, section, summary')].filter((at) => !named(at)).map((at) => at.outerHTML.slice(0, 80));
"""


def program(variable, *names):
    """The path of a program: that which the variable names, or the first one found."""
    found = os.environ.get(variable) or next(filter(None, map(shutil.which, names)), None)
    if not found:
        sys.exit(f"check_page: none of {', '.join(names)} is installed; {variable} can name another")
    return found


def browser():
    options = Options()
    options.binary_location = program("CHROMIUM", "chromium", "chromium-browser", "google-chrome")
    # As root Chromium has no sandbox, and in a container little shared memory.
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(service=Service(program("CHROMEDRIVER", "chromedriver")), options=options)
    driver.execute_cdp_cmd("Emulation.setTimezoneOverride", {"timezoneId": "Europe/Berlin"})
    driver.execute_cdp_cmd(
        "Browser.grantPermissions", {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]}
    )
    return driver


class Page(unittest.TestCase):
    """A page in a browser of its own, 1440 pixels wide."""

    path = None

    @classmethod
    def setUpClass(cls):
        cls.driver = browser()
        text = cls.path.read_text(encoding="utf-8")
        data = re.search(r'id="status">(.*?)</script>', text, re.S).group(1)
        cls.document = json.loads(data)

    @classmethod
    def tearDownClass(cls):
        cls.driver.quit()

    def setUp(self):
        self.size(1440)
        self.media("light")
        self.driver.get(self.path.as_uri())
        self.run_js("localStorage.clear()")
        self.driver.get(self.path.as_uri())
        self.settle()

    def tearDown(self):
        errors = [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]
        self.assertEqual(errors, [], "errors in the console")

    def run_js(self, script, *arguments):
        return self.driver.execute_script(script, *arguments)

    def size(self, width, height=900):
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False},
        )

    def media(self, theme, motion="no-preference"):
        features = [
            {"name": "prefers-color-scheme", "value": theme},
            {"name": "prefers-reduced-motion", "value": motion},
        ]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def settle(self):
        """Waits until what was asked for is drawn, which happens in the next frame."""
        self.driver.execute_async_script(
            "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, 60)));"
        )

    def find(self, selector):
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def text(self, selector):
        return self.run_js("return document.querySelector(arguments[0]).textContent", selector)

    def click(self, selector):
        self.run_js(
            "document.querySelector(arguments[0]).scrollIntoView({block: 'center', behavior: 'instant'})", selector
        )
        self.find(selector).click()
        self.settle()

    def press(self, *keys):
        ActionChains(self.driver).send_keys(*keys).perform()
        self.settle()

    def go_to(self, typed):
        field = self.find("#time")
        field.clear()
        field.send_keys(typed, Keys.ENTER)
        self.settle()

    def command(self):
        return None if self.run_js("return document.getElementById('moment-command').hidden") else self.text("#command")

    def clipboard(self):
        return self.driver.execute_async_script(
            "navigator.clipboard.readText().then(arguments[0], (error) => arguments[0](String(error)))"
        )

    def ticks(self):
        return self.run_js("return [...document.querySelectorAll('[data-part=tick]')].map((at) => at.textContent)")

    def need(self, is_there, what):
        if not is_there:
            self.skipTest(f"the page has no {what}")

    def need_lanes(self):
        self.need(self.run_js("return Boolean(document.querySelector('#drawing [data-lane]'))"), "timeline")

    def need_events(self):
        self.need(self.run_js("return Boolean(document.querySelector('#event-list button'))"), "event")


class AnyPage(Page):
    """What holds for every page."""

    def test_nothing_is_loaded_and_nothing_of_the_data_becomes_an_element(self):
        self.assertEqual(self.run_js("return performance.getEntriesByType('resource').map((entry) => entry.name)"), [])
        self.run_js("document.querySelectorAll('details').forEach((at) => { at.open = true; })")
        self.settle()
        self.assertEqual(self.driver.title, "Walhalla status")
        self.assertEqual(self.run_js("return document.querySelectorAll('script').length"), 2)
        self.assertEqual(self.run_js("return document.querySelectorAll('img, iframe, object, embed, b').length"), 0)

    def test_no_width_makes_the_page_scroll_sideways_and_each_theme_has_enough_contrast(self):
        for theme in THEMES:
            self.media(theme)
            for width in WIDTHS:
                with self.subTest(theme=theme, width=width):
                    self.size(width)
                    self.settle()
                    self.assertLessEqual(self.run_js("return document.documentElement.scrollWidth"), width)
                    self.assertLessEqual(self.run_js("return document.body.scrollWidth"), width)
                    self.assertEqual(self.run_js(CONTRASTS), [])
                    self.screenshot(theme, width)

    def screenshot(self, theme, width):
        if not SCREENSHOTS:
            return
        # The whole page; what is taller than a screen file should be is cut.
        self.size(width, min(self.run_js("return document.documentElement.scrollHeight"), 4000))
        self.settle()
        self.driver.save_screenshot(str(SCREENSHOTS / f"{self.path.stem}-{width}-{theme}.png"))
        self.size(width)

    def test_the_theme_follows_the_system_until_one_is_chosen_which_is_remembered(self):
        ground = "return getComputedStyle(document.body).backgroundColor"
        light = self.run_js(ground)
        self.media("dark")
        self.settle()
        dark = self.run_js(ground)
        self.assertNotEqual(light, dark)
        self.run_js("document.querySelector('[name=theme][value=light]').click()")
        self.assertEqual(self.run_js(ground), light)
        self.driver.refresh()
        self.settle()
        self.assertEqual(self.run_js(ground), light)

    def test_utc_is_written_instead_of_the_local_offset_when_it_is_chosen(self):
        self.run_js("document.querySelector('[name=zone][value=utc]').click()")
        self.settle()
        self.assertIn("+00:00", self.text("#made"))
        if self.run_js("return Boolean(document.querySelector('[data-part=zone]'))"):
            self.assertEqual(self.text("[data-part=zone]"), "times in UTC")

    def test_motion_is_spared_where_the_system_asks_for_it(self):
        behaviour = "return getComputedStyle(document.documentElement).scrollBehavior"
        self.assertEqual(self.run_js(behaviour), "smooth")
        self.media("light", "reduce")
        self.assertEqual(self.run_js(behaviour), "auto")

    def test_everything_that_can_be_used_has_a_name_and_headings_come_in_order(self):
        self.assertEqual(self.run_js(UNNAMED), [])
        levels = self.run_js(
            "return [...document.querySelectorAll('h1, h2, h3, h4')].filter((at) => !at.closest('[hidden]')).map((at) => Number(at.tagName[1]))"
        )
        self.assertEqual(levels[0], 1)
        for before, after in zip(levels, levels[1:]):
            self.assertLessEqual(after, before + 1)
        ids = self.run_js(
            "return [...document.querySelectorAll('[id]')].map((at) => at.id).filter((id) => !['hatch', 'dense'].includes(id))"
        )
        self.assertEqual(len(ids), len(set(ids)))
        self.assertEqual(self.run_js("return document.querySelectorAll('main').length"), 1)

    def test_every_table_has_a_caption_and_headers(self):
        self.run_js("document.querySelectorAll('details').forEach((at) => { at.open = true; })")
        self.settle()
        tables = self.driver.find_elements(By.TAG_NAME, "table")
        if self.document["clusters"]:
            self.assertEqual(len(tables), 6)
        for table in tables:
            self.assertTrue(table.find_element(By.TAG_NAME, "caption").text)
            heads = table.find_elements(By.CSS_SELECTOR, "thead th")
            self.assertTrue(heads and all(head.get_attribute("scope") == "col" for head in heads))
            rows = table.find_elements(By.CSS_SELECTOR, "tbody tr")[:3]
            self.assertTrue(all(row.find_elements(By.CSS_SELECTOR, "th[scope=row]") for row in rows))

    def test_a_click_in_the_picture_pins_a_moment_and_shows_its_command(self):
        self.need_lanes()
        self.need(self.run_js("return document.querySelectorAll('#drawing .reach').length"), "span that can be reached")
        self.run_js("document.getElementById('picture').scrollIntoView({block: 'center', behavior: 'instant'})")
        self.settle()
        left, width, y = self.widest_reach()
        # How wide it is at first depends on how long the cluster lived before its backup.
        for _ in range(12):
            if width > 200:
                break
            self.scroll_in(left + width / 2, y)
            left, width, y = self.widest_reach()
        for share in (0.5, 0.31, 0.62, 0.77, 0.18):
            actions = ActionChains(self.driver)
            actions.w3c_actions.pointer_action.move_to_location(int(left + width * share), int(y))
            actions.w3c_actions.pointer_action.click()
            actions.perform()
            self.settle()
            if self.command():
                break
        self.assertIn("Pinned", self.text("#moment-heading"))
        self.assertIsNotNone(self.command(), f"{width} px wide: " + self.text("#moment"))
        self.assertRegex(
            self.command(),
            r" --target-time '\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d{1,6})?\+00'( --target-timeline \d+)? --target-action promote --archive-mode off$",
        )
        self.assertFalse(self.run_js("return document.getElementById('tip').hidden"))

    def widest_reach(self):
        boxes = self.run_js(
            "return [...document.querySelectorAll('#drawing .reach')].map((at) => at.getBoundingClientRect()).map((box) => [box.left, box.width, box.top + box.height / 2])"
        )
        return max(boxes, key=lambda box: box[1])

    def scroll_in(self, x, y):
        wheel = {"type": "mouseWheel", "x": int(x), "y": int(y), "deltaX": 0, "deltaY": -120}
        self.driver.execute_cdp_cmd("Input.dispatchMouseEvent", wheel)
        self.settle()

    def test_the_pointer_shows_the_moment_under_it_and_a_pinned_one_stays(self):
        self.need_lanes()
        picture = self.find("#picture")
        self.run_js("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", picture)
        seen = []
        for offset in (-300, 200):
            ActionChains(self.driver).move_to_element_with_offset(picture, offset, 10).perform()
            seen.append(self.text("#moment-time"))
        self.assertNotEqual(*seen)
        ActionChains(self.driver).move_to_element_with_offset(picture, 250, -10).click().perform()
        pinned = self.text("#moment-time")
        ActionChains(self.driver).move_to_element_with_offset(picture, -250, 10).perform()
        self.assertEqual(self.text("#moment-time"), pinned)

    def test_zoom_goes_from_the_whole_to_minutes_and_back_and_the_axis_follows(self):
        self.need_lanes()
        whole = self.ticks()
        self.run_js("document.getElementById('picture').focus()")
        self.press(Keys.END, *["+"] * 30)
        self.assertTrue(self.run_js("return document.getElementById('zoom-in').disabled"))
        near = self.ticks()
        self.assertTrue(near and all(re.fullmatch(r"\d\d:\d\d(:\d\d)?", tick) for tick in near), near)
        self.press(*["-"] * 40)
        self.assertTrue(self.run_js("return document.getElementById('zoom-out').disabled"))
        self.assertEqual(self.ticks(), whole)
        for name in ("1h", "24h", "all"):
            self.click(f"[data-span='{name}']")
        self.assertEqual(self.ticks(), whole)

    def test_the_wheel_zooms_around_the_pointer(self):
        self.need_lanes()
        picture = self.find("#picture")
        self.run_js("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", picture)
        before = self.text("#shown")
        time.sleep(0.4)
        box = picture.rect
        scrolled = self.run_js("return scrollY")
        x, y = int(box["x"] + box["width"] / 2), int(box["y"] - scrolled + 80)
        for _ in range(4):
            self.scroll_in(x, y)
        self.assertNotEqual(self.text("#shown"), before)
        self.assertEqual(self.run_js("return scrollY"), scrolled)

    def test_two_fingers_zoom_and_one_moves_without_choosing_a_moment(self):
        self.need_lanes()
        picture = self.find("#picture")
        self.run_js("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", picture)
        self.settle()
        left, y = self.run_js(
            "const box = arguments[0].getBoundingClientRect(); return [box.left, box.top + 90]", picture
        )
        moment, ticks = self.text("#moment-heading"), self.ticks()
        self.touch(y, (left + 500, left + 700), (left + 300, left + 900))
        apart = self.text("#shown")
        self.assertNotEqual(self.ticks(), ticks)
        before = self.run_js("return document.querySelector('#drawing .grid').getAttribute('x1')")
        self.touch(y, (left + 700,), (left + 640,))
        self.assertNotEqual(self.run_js("return document.querySelector('#drawing .grid').getAttribute('x1')"), before)
        self.assertEqual(self.text("#shown"), apart)
        self.assertEqual(self.text("#moment-heading"), moment)

    def touch(self, y, starts, ends):
        """Fingers go from these places to those."""
        self.driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True, "maxTouchPoints": 2})
        for step in range(6):
            places = [start + (end - start) * step / 5 for start, end in zip(starts, ends)]
            points = [{"x": x, "y": y, "id": index} for index, x in enumerate(places)]
            kind = "touchMove" if step else "touchStart"
            self.driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
        self.driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
        self.driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": False})
        self.settle()

    def test_the_keyboard_moves_the_moment_and_says_what_it_finds(self):
        self.need_lanes()
        self.run_js("document.getElementById('picture').focus()")
        self.press(Keys.HOME)
        first = self.find("#picture").get_attribute("aria-valuetext")
        self.press(Keys.ARROW_RIGHT)
        second = self.find("#picture").get_attribute("aria-valuetext")
        self.assertNotEqual(first, second)
        self.assertRegex(second, r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d.*: can(not)? be reached$")

    def test_the_keyboard_alone_reaches_the_command_of_an_event(self):
        self.need_events()
        for _ in range(300):
            self.press(Keys.TAB)
            if self.run_js("return Boolean(document.activeElement.closest('#event-list'))"):
                break
        label = self.run_js("return document.activeElement.textContent")
        self.need(label == "Command for just before this", "command for its newest event")
        self.press(Keys.ENTER)
        self.assertEqual(self.run_js("return document.activeElement.id"), "moment-heading")
        self.assertIn("Just before", self.text("#moment-heading"))
        for _ in range(10):
            self.press(Keys.TAB)
            if self.run_js("return document.activeElement.id") == "copy":
                break
        self.press(Keys.ENTER)
        commands = [event["restore_before"] for cluster in self.document["clusters"] for event in cluster["events"]]
        self.assertIn(self.clipboard(), commands)
        self.assertIn("Copied", self.text("#spoken"))

    def test_copy_selects_the_command_where_there_is_no_clipboard(self):
        self.need_lanes()
        self.run_js("document.getElementById('picture').focus()")
        self.press(Keys.END)
        self.need(self.command(), "moment that can be reached")
        self.run_js(
            "Object.defineProperty(navigator, 'clipboard', { value: undefined, configurable: true }); document.execCommand = () => false;"
        )
        self.click("#copy")
        self.assertIn("selected", self.text("#spoken"))
        self.assertEqual(self.run_js("return getSelection().toString()"), self.command())

    def test_what_is_no_time_is_refused_in_words(self):
        self.need_lanes()
        for typed in ("yesterday", "2026-02-31 10:00:00", "2026-01-01 25:00"):
            self.go_to(typed)
            self.assertIn("Write the time as", self.text("#time-problem"))
        self.go_to("1999-01-01 00:00:00")
        self.assertEqual(self.text("#time-problem"), "")
        self.assertIsNone(self.command())
        self.assertTrue(self.text("#moment-reason"))


class Small(Page):
    """A stranger looks for the table that was dropped."""

    def test_the_search_finds_the_dropped_table_and_its_command(self):
        self.click(".jump a")
        self.find("#search").send_keys("orders")
        self.settle()
        self.assertEqual(self.text("#event-count"), "1 of 5 events, newest first")
        self.click("#event-list button")
        self.assertEqual(
            self.text("#moment-heading"), "Just before: dropped table public.orders in app (3 relations, 12.4 GiB)"
        )
        self.assertEqual(self.command(), self.document["clusters"][0]["events"][3]["restore_before"])

    def test_a_click_on_the_sign_of_an_event_shows_its_command(self):
        self.click("[data-span='30d']")
        place = self.run_js(
            "const box = document.querySelector('#drawing path.event-open').getBoundingClientRect(); return [box.left + box.width / 2, box.top + box.height / 2]"
        )
        actions = ActionChains(self.driver)
        actions.w3c_actions.pointer_action.move_to_location(*map(int, place))
        actions.w3c_actions.pointer_action.click()
        actions.perform()
        self.settle()
        self.assertEqual(self.text("#moment-heading"), "Just before: emptied table public.sessions in app (412 MiB)")

    def test_a_typed_time_is_in_the_zone_of_the_page_unless_it_has_an_offset(self):
        front = "walhalla restore restored --system-identifier 7443178563127885315"
        back = "--target-action promote --archive-mode off"
        for typed, target in (
            ("2026-11-30 10:00:00", "2026-11-30 09:00:00+00"),
            ("2026-11-30 10:00:00Z", "2026-11-30 10:00:00+00"),
            ("2026-11-30 10:00:00.250+00", "2026-11-30 10:00:00.25+00"),
            ("2026-11-30 04:00:00.000001-06:00", "2026-11-30 10:00:00.000001+00"),
            ("2026-10-20 10:00", "2026-10-20 08:00:00+00"),
        ):
            with self.subTest(typed=typed):
                self.go_to(typed)
                self.assertEqual(self.command(), f"{front} --target-time '{target}' {back}")

    def test_a_time_is_shown_with_the_offset_of_its_season(self):
        for typed, shown in (
            ("2026-10-20 10:00", "2026-10-20 10:00:00+02:00"),
            ("2026-10-28 10:00", "2026-10-28 10:00:00+01:00"),
        ):
            self.go_to(typed)
            self.assertIn(shown, self.text("#moment-time"))

    def test_the_newest_usable_backup_before_a_moment_is_named(self):
        self.go_to("2026-11-20 12:00:00Z")
        self.assertIn("20261120T104000Z", self.text("#moment-facts"))
        self.assertIn("1 h 20 min", self.text("#moment-facts"))

    def test_the_end_of_the_archive_is_restored_without_a_time(self):
        self.run_js("document.getElementById('picture').focus()")
        self.press(Keys.END)
        self.assertNotIn("--target-time", self.command())
        self.go_to("2026-11-30 10:39:30Z")
        self.assertIn("after the end of the archive", self.text("#moment-reason"))
        self.assertIsNone(self.command())
        self.click("#moment-offers button")
        self.assertIn("end of the archive", self.text("#moment-reason"))
        self.assertIsNotNone(self.command())


class Gap(Page):
    """Each reason why a moment cannot be reached has its words, and leads to one that can."""

    def refused(self, typed, reason, nearest):
        self.go_to(typed)
        self.assertIsNone(self.command())
        self.assertIn(reason, self.text("#moment-reason"))
        self.assertIn(nearest, self.text("#moment-offers"))
        self.click("#moment-offers button:last-child")
        self.assertIsNotNone(self.command())

    def test_before_the_first_backup(self):
        self.refused("2026-11-20 00:00:00Z", "before the first backup", "2026-11-26 11:40:00+01:00")

    def test_in_a_gap(self):
        self.refused(
            "2026-11-28 10:50:00Z",
            "9 WAL segments, 00000001000000000000005B to 000000010000000000000063, are missing",
            "2026-11-28 11:39:59.999999+01:00",
        )

    def test_the_last_transaction_before_a_gap_is_no_target_as_recovery_needs_a_later_one(self):
        self.refused("2026-11-28 10:40:00Z", "lies in a gap", "2026-11-28 11:39:59.999999+01:00")
        self.assertIn(" --target-time '2026-11-28 10:39:59.999999+00' ", self.command())

    def test_between_a_gap_and_the_next_backup(self):
        self.refused("2026-11-29 10:00:00Z", "between a gap and the next backup", "2026-11-29 11:40:00+01:00")

    def test_after_the_end_of_the_archive(self):
        self.refused(
            "2026-11-30 10:39:00Z", "after the end of the archive", "end of the archive, 2026-11-30 11:37:00+01:00"
        )

    def test_in_the_future(self):
        self.refused("2027-01-01 00:00:00Z", "after the time at which this page was made", "end of the archive")


class Large(Page):
    """Four timelines, 2,000 backups, 1,000 events, 200 runs of coverage, names that try to run."""

    def test_the_cluster_that_is_worst_comes_first_and_the_others_are_one_click_away(self):
        self.assertIn("7443178563127885399", self.text("#state-cluster"))
        self.assertIn("Critical", self.text("#state-heading"))
        self.click("#clusters li:last-child button")
        self.assertIn("7443178563127885400", self.text("#state-cluster"))
        self.assertIn("no backup", self.text("#moment-reason"))
        self.assertIsNone(self.command())

    def test_a_picture_of_years_holds_few_signs_at_any_zoom(self):
        for name in ("all", "365d", "30d", "7d", "24h", "1h"):
            self.click(f"[data-span='{name}']")
            self.assertLess(self.run_js("return document.querySelectorAll('#drawing *').length"), 2500, name)
        self.assertLess(self.run_js("return document.querySelectorAll('*').length"), 5000)

    def test_the_axis_shows_years_and_then_days(self):
        self.assertTrue(
            {"2023", "2024", "2025"}
            <= set(
                self.run_js("return [...document.querySelectorAll('[data-part=context]')].map((at) => at.textContent)")
            )
        )
        self.click("[data-span='7d']")
        self.assertTrue(any(":" in tick for tick in self.ticks()))

    def test_the_command_names_the_timeline_that_recovery_follows(self):
        self.go_to("2026-11-28 12:00:00Z")
        self.assertIn(" --target-timeline 4 ", self.command())

    def test_a_newer_backup_that_cannot_be_used_is_named_with_the_reason(self):
        broken = self.document["clusters"][1]["backups"][-3]
        self.go_to(broken["stop_time"].replace("T", " ")[:16] + ":59Z")
        self.assertIn(
            f"backup {broken['id']} is newer: part 3 of its parent has another checksum", self.text("#moment-facts")
        )

    def test_a_branch_that_was_left_is_reached_on_its_own_timeline(self):
        # Timeline 3 left timeline 2 on 1 September; timeline 2 went on for two weeks.
        self.run_js(
            "document.getElementById('lane').value = '2'; document.getElementById('lane').dispatchEvent(new Event('change'))"
        )
        self.go_to("2026-09-05 12:00:00Z")
        self.assertIn(" --target-timeline 2 ", self.command())
        self.go_to("2026-10-01 12:00:00Z")
        self.assertIn("after the end of the archive", self.text("#moment-reason"))
        self.click("#moment-offers button")
        self.assertIn(" --target-timeline 4 ", self.command())

    def test_a_blank_part_of_a_lane_means_the_timeline_that_holds_the_time(self):
        self.click("[data-span='30d']")
        # Timeline 1 was left 500 days ago; its lane is blank here.
        place = self.run_js(
            "const box = document.querySelector('[data-lane=\"4\"] .reach').getBoundingClientRect(); return [box.left + box.width / 3, document.getElementById('drawing').getBoundingClientRect().top + 90]"
        )
        actions = ActionChains(self.driver)
        actions.w3c_actions.pointer_action.move_to_location(*map(int, place))
        actions.w3c_actions.pointer_action.click()
        actions.perform()
        self.settle()
        self.assertIn(" --target-timeline 4 ", self.command())

    def test_text_from_the_data_is_shown_and_never_run(self):
        self.find("#search").send_keys("<script>")
        self.settle()
        self.assertIn("<script>document.title='ran'</script>", self.text("#event-list"))
        self.click("#event-list button")
        self.assertIn("<script>", self.text("#moment-heading"))
        self.run_js("document.querySelectorAll('details').forEach((at) => { at.open = true; })")
        self.settle()
        self.assertEqual(self.driver.title, "Walhalla status")

    def test_an_event_that_cannot_be_undone_says_so(self):
        self.find("#search").send_keys("2022-12")
        self.settle()
        self.assertEqual(self.text("#event-list button"), "Why no command?")
        self.click("#event-list button")
        self.assertIn("cannot be reached", self.text("#moment-verdict"))
        self.assertTrue(self.text("#moment-reason"))
        self.assertIsNone(self.command())

    def test_long_tables_and_lists_grow_by_a_click(self):
        self.run_js("document.querySelector('[data-table=Backups]').open = true")
        self.settle()
        rows = "return document.querySelectorAll('[data-table=Backups] tbody tr').length"
        self.assertEqual(self.run_js(rows), 100)
        self.click("[data-table=Backups] .scroll > button")
        self.assertEqual(self.run_js(rows), 200)
        before = self.run_js("return document.querySelectorAll('#event-list li').length")
        self.click("#more-events")
        self.assertEqual(self.run_js("return document.querySelectorAll('#event-list li').length"), 2 * before)


class Empty(Page):
    """A store that holds nothing yet."""

    def test_the_page_says_what_to_do(self):
        self.assertIn("walhalla backup-push", self.text("main"))


def suite(directory):
    """The tests of PAGE, or of the samples, which are written into a directory."""
    pages = [("any", PAGE, (AnyPage,))]
    if PAGE is None:
        sample.write(directory)
        own = {"small": Small, "gap": Gap, "large": Large, "empty": Empty}
        pages = [(name, directory / f"{name}.html", (AnyPage, kind)) for name, kind in own.items()]
    loader, tests = unittest.TestLoader(), unittest.TestSuite()
    for name, path, kinds in pages:
        for kind in kinds:
            # A class of its own for each page, so that a failure names the page.
            tests.addTests(
                loader.loadTestsFromTestCase(
                    type(f"{kind.__name__}_{name}", (kind,), {"path": path, "__doc__": kind.__doc__})
                )
            )
    return tests


def main():
    global PAGE, SCREENSHOTS
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", nargs="?", type=pathlib.Path, metavar="PAGE.html")
    parser.add_argument("--screenshots", type=pathlib.Path, metavar="DIR")
    arguments = parser.parse_args()
    PAGE, SCREENSHOTS = arguments.page and arguments.page.resolve(), arguments.screenshots
    if SCREENSHOTS:
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="walhalla-page-") as directory:
        result = unittest.TextTestRunner(verbosity=2).run(suite(pathlib.Path(directory)))
    sys.exit(not result.wasSuccessful())


if __name__ == "__main__":
    main()
