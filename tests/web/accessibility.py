"""Accessibility measurements in the page: contrast, focus order, and names for screen readers."""

from __future__ import annotations

from tests.web.browser import Tab

CONTROLS = {"button", "combobox", "switch", "checkbox", "textbox", "link"}

_FAULTS = """
(() => {
  const faults = [];
  const seen = (element) => element.checkVisibility({ visibilityProperty: true });
  const paper = document.createElement("canvas");
  paper.width = paper.height = 1;
  const pen = paper.getContext("2d", { willReadFrequently: true });
  const over = (colours) => {  // the first lies at the bottom
    pen.clearRect(0, 0, 1, 1);
    for (const colour of colours) { pen.fillStyle = colour; pen.fillRect(0, 0, 1, 1); }
    return [...pen.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const light = (rgb) => rgb.map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const contrast = (a, b) => {
    const [dark, bright] = [light(a), light(b)].sort((x, y) => x - y);
    return (bright + 0.05) / (dark + 0.05);
  };
  const under = (element) => {
    const layers = [];
    for (let e = element; e; e = e.parentElement) layers.unshift(getComputedStyle(e).backgroundColor);
    return ["white", ...layers];
  };
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let measured = 0;
  while (texts.nextNode()) {
    const element = texts.currentNode.parentElement;
    if (!texts.currentNode.data.trim() || !seen(element) || element.closest("script, option")) continue;
    const style = getComputedStyle(element), size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    const layers = under(element);
    const ratio = contrast(over(layers), over([...layers, style.color]));
    measured += 1;
    if (ratio < (large ? 3 : 4.5))
      faults.push(`contrast ${ratio.toFixed(2)}: ${texts.currentNode.data.trim().slice(0, 40)}`);
  }
  if (measured < 5) faults.push(`only ${measured} texts were measured`);
  for (const control of document.querySelectorAll("button, select, input, a[href]")) {
    if (!seen(control)) continue;
    const box = control.getBoundingClientRect();
    if (box.width < 24 || box.height < 24) faults.push(`small: #${control.id}`);
    const style = getComputedStyle(control), edge = over([...under(control.parentElement), style.borderTopColor]);
    const fill = over(under(control)), page = over(under(control.parentElement));
    if (Math.max(contrast(edge, page), contrast(fill, page)) < 3) faults.push(`no edge: #${control.id}`);
  }
  const ids = [...document.querySelectorAll("[id]")].map((e) => e.id);
  if (new Set(ids).size !== ids.length) faults.push("two elements share an id");
  for (const name of ["aria-labelledby", "aria-describedby"])
    for (const e of document.querySelectorAll(`[${name}]`))
      for (const id of e.getAttribute(name).split(" "))
        if (!document.getElementById(id)) faults.push(`${name} points to no #${id}`);
  if (document.querySelector("[tabindex]:not([tabindex='0']):not([tabindex='-1'])")) faults.push("an order of its own");
  if (document.documentElement.lang !== "en" || !document.title) faults.push("no language or title");
  const wide = document.documentElement;
  if (wide.scrollWidth > wide.clientWidth) faults.push(`${wide.scrollWidth - wide.clientWidth} px too wide`);
  return faults;
})()
"""  # noqa: E501


async def faults(tab: Tab) -> list[str]:
    """Contrast, sizes, references and width as the browser has computed them; names and roles
    as it gives them to a screen reader.
    """
    found = list(await tab.evaluate(_FAULTS))
    roles: set[str] = set()
    for node in (await tab.call("Accessibility.getFullAXTree"))["nodes"]:
        role = node.get("role", {}).get("value", "")
        if node.get("ignored"):
            continue
        roles.add(role)
        if role in CONTROLS | {"image", "log", "region"} and not node.get("name", {}).get("value"):
            found.append(f"a {role} without a name")
    return found + [f"no {role}" for role in ("main", "heading", "status") if role not in roles]


async def show_as(tab: Tab, *, width: int, height: int, dark: bool) -> None:
    """Emulates a screen of that size, in light or dark colours."""
    await tab.call(
        "Emulation.setDeviceMetricsOverride",
        width=width, height=height, deviceScaleFactor=1, mobile=width < 600,
    )  # fmt: skip
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    await tab.call("Emulation.setEmulatedMedia", features=[scheme])


async def faults_everywhere(tab: Tab) -> dict[str, list[str]]:
    """Faults by screen and colours; leaves the page at desktop size in light colours."""
    found = {}
    for dark in (True, False):
        for width, height in ((360, 740), (1200, 820)):
            await show_as(tab, width=width, height=height, dark=dark)
            name = f"{width} px, {'dark' if dark else 'light'}"
            found[name] = await faults(tab)
    return found


async def tab_stops(tab: Tab) -> list[str]:
    """Ids in the order of the Tab key from the top; with `!` where the focus is not visible."""
    await tab.evaluate("document.activeElement.blur()")
    stops: list[str] = []
    for _ in range(12):
        await tab.press("Tab", 9)
        stop = await tab.evaluate(
            "(e => e === document.body ? '' : e.id +"
            " (getComputedStyle(e).outlineStyle === 'none' ? '!' : ''))(document.activeElement)"
        )
        if not stop or stop in stops:
            break
        stops.append(stop)
    return stops
