// The page: passes the user's input to the call and shows the call's events.

import { LogLevel, Room, setLogLevel } from "livekit-client";
import { Call, type Listener } from "./call";
import { Transcript } from "./transcript";
import { heardAs, type Model } from "./voices";
import { type Heard, Waves } from "./waves";
import { Failure, SOUND_BLOCKED, type Words } from "./words";

type Phase = "idle" | "joining" | "call";

function find<T extends HTMLElement>(id: string): T {
  const found = document.getElementById(id);
  if (found === null) throw new Error(`the page has no #${id}`);
  return found as T;
}

const start = find<HTMLButtonElement>("start");
const soundOn = find<HTMLButtonElement>("sound");
const mute = find<HTMLButtonElement>("mute");
const consent = find<HTMLInputElement>("consent");
const microphone = find<HTMLSelectElement>("microphone");
const canvases = {
  agent: find<HTMLCanvasElement>("agent-wave"),
  you: find<HTMLCanvasElement>("you-wave"),
};
const transcript = new Transcript(find("log"), find("empty"), find("turns"));

const STATES: Readonly<Record<string, string>> = {
  initializing: "The agent is getting ready",
  idle: "Listening",
  listening: "Listening",
  thinking: "Thinking",
  speaking: "Speaking",
};

setLogLevel(LogLevel.warn);

let call: Call | null = null;
let waves: Waves | null = null;
let clock = 0;
let isMuted = false;

function showPhase(phase: Phase): void {
  document.body.dataset["phase"] = phase;
  const calling = phase === "call";
  start.hidden = calling;
  start.disabled = phase === "joining";
  find("start-text").textContent = phase === "joining" ? "Connecting…" : "Start call";
  find("controls").hidden = !calling;
  find("intro").hidden = calling;
  find("lanes").hidden = !calling;
  if (phase === "idle") {
    soundOn.hidden = true;
    showState("off", "Not in a call");
  }
  if (phase === "joining") showState("wait", "Connecting");
}

function showState(kind: "off" | "wait" | "on" | "lost", text: string): void {
  find("state").dataset["kind"] = kind;
  const label = find("state-text");
  if (label.textContent !== text) label.textContent = text;
}

function showNotice(told: Words | null): void {
  const notice = find("notice");
  if (told === null) {
    notice.hidden = true;
    return;
  }
  find("notice-title").textContent = told.title;
  find("notice-text").textContent = told.text;
  notice.hidden = false;
}

function showSpeaking(heard: Heard): void {
  for (const side of ["agent", "you"] as const) {
    const mark = find(`${side}-speaking`);
    mark.textContent = heard[side] ? "Speaking" : side === "you" && isMuted ? "Muted" : "Silent";
    mark.dataset["on"] = String(heard[side]);
  }
}

let known: Model = { clones: true, follows: "" };

function showVoice(voice: string): void {
  const chip = find("voice");
  const { name, cloned } = heardAs(voice, known);
  chip.textContent = cloned ? name : `${name} (this model does not clone)`;
  chip.dataset["voice"] = voice || "none";
}

function showEngine(agent: Readonly<Record<string, string>>): void {
  const { "csm.model": model, "csm.device": device } = agent;
  const line = find("engine");
  line.hidden = model === undefined;
  line.textContent = device === undefined ? `Model ${model}` : `Model ${model} on ${device}`;
}

/**
 * Callers can also give and withdraw consent aloud; the voice attribute shows it. After a spoken
 * withdrawal the switch goes off, so that it can grant consent again.
 */
function followSpokenConsent(voice: string): void {
  const before = find("voice").dataset["voice"];
  if (call === null || consent.disabled || voice === before) return;
  if (voice === "caller") {
    consent.checked = true;
  } else if (before === "caller" && consent.checked) {
    consent.checked = false;
    void call.consent(false);
  }
}

/** Browsers tell device names only after microphone permission. */
async function showMicrophones(): Promise<void> {
  const devices = await Room.getLocalDevices("audioinput", false).catch(() => []);
  const named = devices.filter((device) => device.deviceId !== "" && device.label !== "");
  if (named.length === 0) return;
  const chosen = microphone.value;
  microphone.replaceChildren(...named.map((d) => new Option(d.label, d.deviceId)));
  const known = named.some((device) => device.deviceId === chosen);
  microphone.value = known ? chosen : (named[0]?.deviceId ?? "");
}

function startClock(): void {
  const began = Date.now();
  const show = (): void => {
    const passed = Math.floor((Date.now() - began) / 1000);
    find("clock").textContent = `${Math.floor(passed / 60)}:${String(passed % 60).padStart(2, "0")}`;
  };
  show();
  clock = window.setInterval(show, 1000);
}

function finish(told: Words | null): void {
  window.clearInterval(clock);
  waves?.stop();
  waves = call = null;
  void context?.suspend();
  showPhase("idle");
  showVoice("");
  find("engine").hidden = true;
  showNotice(told);
  start.focus();
}

let context: AudioContext | null = null;

const listener: Listener = {
  agentState: (state) => {
    if (state === null) showState("wait", "Waiting for the agent");
    else showState("on", STATES[state] ?? "In the call");
    document.body.dataset["agent"] = state ?? "absent";
  },
  facts: (agent) => {
    const voice = agent["csm.voice"] ?? "";
    known = { clones: agent["csm.clones"] !== "false", follows: agent["csm.follows"] ?? "" };
    followSpokenConsent(voice);
    showVoice(voice);
    showEngine(agent);
  },
  said: (speaker, segment, text, final) => transcript.show(speaker, segment, text, final),
  turn: (report) => {
    const voice = report.voice === "" ? "" : heardAs(report.voice, known).name;
    transcript.showTimes({ ...report, voice }, waves?.answeredAfter ?? null);
    if (waves !== null) waves.answeredAfter = null;
  },
  sound: (side, track) => waves?.[side].listen(track),
  trouble: (told) => {
    showNotice(told);
    document.body.dataset["trouble"] = String(told !== null);
  },
  playable: (possible) => {
    if (!possible) showNotice(SOUND_BLOCKED);
    else if (!soundOn.hidden) showNotice(null);
    soundOn.hidden = possible;
  },
  muted: (muted) => {
    isMuted = muted;
    mute.setAttribute("aria-pressed", String(muted));
    find("mute-text").textContent = muted ? "Unmute" : "Mute";
    showSpeaking({ agent: find("agent-speaking").dataset["on"] === "true", you: false });
  },
  devices: () => void showMicrophones(),
  ended: finish,
};

async function begin(): Promise<void> {
  showNotice(null);
  showPhase("joining");
  context ??= new AudioContext();
  void context.resume();
  waves = new Waves(context, canvases, showSpeaking);
  const made = new Call(listener);
  call = made;
  try {
    await made.start(microphone.value, consent.checked);
  } catch (error) {
    finish(error instanceof Failure ? error.words : { title: "The call failed.", text: String(error) });
    return;
  }
  if (call !== made) return; // ended while it was starting
  transcript.clear();
  find("talk").hidden = false;
  showPhase("call");
  listener.muted(false);
  startClock();
  void showMicrophones();
  mute.focus();
}

start.addEventListener("click", () => void begin());
find("hang-up").addEventListener("click", () => void call?.hangUp());
mute.addEventListener("click", () => void call?.setMuted(!isMuted));
soundOn.addEventListener("click", () => void call?.playSound());
microphone.addEventListener("change", () => void call?.useMicrophone(microphone.value));
consent.addEventListener("change", async () => {
  if (call === null) return;
  consent.disabled = true;
  const wanted = consent.checked;
  if (!(await call.consent(wanted))) consent.checked = !wanted;
  consent.disabled = false;
  consent.focus();
});
navigator.mediaDevices?.addEventListener("devicechange", () => void showMicrophones());
void showMicrophones();
