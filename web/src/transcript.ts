// The live transcript, with each turn's latency under its reply.

import { seconds, turnTimes, type TurnReport, type TurnTimes } from "./figures";

export type Speaker = "agent" | "you";

interface Said {
  speaker: Speaker;
  item: HTMLLIElement;
  text: HTMLParagraphElement;
  hasTimes: boolean;
}

export class Transcript {
  private readonly said = new Map<string, Said>();
  private longest = 0;
  private turns = 0;

  constructor(
    private readonly list: HTMLElement,
    private readonly empty: HTMLElement,
    private readonly count: HTMLElement,
  ) {}

  clear(): void {
    this.list.replaceChildren();
    this.said.clear();
    this.longest = this.turns = 0;
    this.count.textContent = "";
    this.empty.hidden = false;
  }

  /** Shows a segment's text, interim or final. */
  show(speaker: Speaker, segment: string, text: string, final: boolean): void {
    if (text.trim() === "") return;
    const key = `${speaker} ${segment}`;
    const known = this.said.get(key) ?? this.add(key, speaker);
    const atEnd = this.atEnd();
    if (known.text.textContent !== text) known.text.textContent = text;
    known.item.classList.toggle("interim", !final);
    // A screen reader reads the segment only when it is final.
    known.item.setAttribute("aria-busy", String(!final));
    if (atEnd) this.follow();
  }

  /** Adds a turn's latency to the last reply that has none yet. `report.voice` is shown as it is. */
  showTimes(report: TurnReport, heard: number | null): void {
    const times = turnTimes(report, heard);
    if (times === null) return;
    const atEnd = this.atEnd();
    const reply = [...this.said.values()].findLast((s) => s.speaker === "agent");
    const place = reply === undefined || reply.hasTimes ? this.add(`turn ${report.turn}`, "agent") : reply;
    place.hasTimes = true;
    place.item.append(timesOf(report, times));
    this.longest = Math.max(this.longest, times.total);
    this.scale();
    this.turns += 1;
    this.count.textContent = this.turns === 1 ? "1 reply" : `${this.turns} replies`;
    if (atEnd) this.follow();
  }

  private add(key: string, speaker: Speaker): Said {
    const item = document.createElement("li");
    item.className = speaker;
    const name = document.createElement("span");
    name.className = "who";
    name.textContent = speaker === "agent" ? "Agent" : "You";
    const text = document.createElement("p");
    item.append(name, text);
    const atEnd = this.atEnd();
    this.list.append(item);
    if (atEnd) this.follow();
    this.empty.hidden = true;
    const said = { speaker, item, text, hasTimes: false };
    this.said.set(key, said);
    return said;
  }

  /** All bars have one scale, set by the slowest turn. */
  private scale(): void {
    for (const bar of this.list.querySelectorAll<HTMLElement>(".bar")) {
      bar.style.width = `${(100 * Number(bar.dataset["total"])) / this.longest}%`;
    }
  }

  /** Does not scroll if the user has scrolled up. */
  private atEnd(): boolean {
    return this.list.scrollHeight - this.list.scrollTop - this.list.clientHeight < 80;
  }

  private follow(): void {
    this.list.scrollTop = this.list.scrollHeight;
  }
}

function timesOf(report: TurnReport, times: TurnTimes): HTMLElement {
  const box = element("div", "times");
  box.dataset["turn"] = String(report.turn);
  box.dataset["interrupted"] = String(report.interrupted);
  box.setAttribute("role", "group");
  box.setAttribute("aria-label", `Turn ${report.turn}: where the time went`);
  const head = element("p", "times-head");
  head.append(element("strong", "", seconds(times.total)), " to the first sound");
  if (report.voice !== "") head.append(` · ${report.voice.toLowerCase()}`);
  if (report.interrupted) head.append(" · ", element("span", "mark", "interrupted"));
  const bar = element("div", "bar");
  bar.dataset["total"] = String(times.total);
  bar.setAttribute("aria-hidden", "true");
  const list = element("dl", "parts");
  for (const part of times.parts) {
    const slice = element("span", part.key);
    slice.style.flexGrow = String(part.seconds);
    if (part.seconds > 0) bar.append(slice);
    const pair = element("div", part.key);
    pair.append(element("dt", "", part.name), element("dd", "", seconds(part.seconds)));
    list.append(pair);
  }
  box.append(head, bar, list);
  return box;
}

function element(tag: string, className: string, text = ""): HTMLElement {
  const made = document.createElement(tag);
  if (className !== "") made.className = className;
  if (text !== "") made.textContent = text;
  return made;
}
