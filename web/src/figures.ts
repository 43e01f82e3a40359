// The parts of a turn's latency, from the agent's figures and from the page's own measurement.

/** The data message `csm.turn`; times in seconds, null if the agent did not measure them. */
export interface TurnReport {
  turn: number;
  endpointing: number | null;
  stt: number | null;
  llm_ttft: number | null;
  /** The LLM's first token until the TTS has its first sentence. */
  first_sentence: number | null;
  tts_first_audio: number | null;
  e2e: number | null;
  voice: string;
  interrupted: boolean;
}

export interface Part {
  key: "stt" | "turn-end" | "llm" | "first-sentence" | "first-audio" | "network";
  name: string;
  seconds: number;
}

export interface TurnTimes {
  /** End of the caller's speech to the reply's first sound. */
  total: number;
  parts: Part[];
}

const FIGURES = [
  "endpointing",
  "stt",
  "llm_ttft",
  "first_sentence",
  "tts_first_audio",
  "e2e",
] as const;

/** Null if the message is not a turn's report: others may send data in the room too. */
export function readReport(data: Uint8Array): TurnReport | null {
  let found: unknown;
  try {
    found = JSON.parse(new TextDecoder().decode(data));
  } catch {
    return null;
  }
  if (typeof found !== "object" || found === null) return null;
  const fields = found as Record<string, unknown>;
  const figure = (name: string): number | null => {
    const value = fields[name];
    return typeof value === "number" && Number.isFinite(value) && value >= 0 ? value : null;
  };
  const [endpointing, stt, llm_ttft, first_sentence, tts_first_audio, e2e] = FIGURES.map(figure);
  if (typeof fields["turn"] !== "number") return null;
  return {
    turn: fields["turn"],
    endpointing: endpointing ?? null,
    stt: stt ?? null,
    llm_ttft: llm_ttft ?? null,
    first_sentence: first_sentence ?? null,
    tts_first_audio: tts_first_audio ?? null,
    e2e: e2e ?? null,
    voice: typeof fields["voice"] === "string" ? fields["voice"] : "",
    interrupted: fields["interrupted"] === true,
  };
}

/**
 * The parts in order of time. Speech-to-text runs during the wait for the end of the turn, so only
 * the rest of that wait counts as "End of turn". The last part is the remainder of the total, which
 * the page measured, or else of the agent's own total.
 */
export function turnTimes(report: TurnReport, heard: number | null): TurnTimes | null {
  const total = believable(heard, report.e2e) ? heard : report.e2e;
  const waited = report.endpointing ?? 0;
  const stt = Math.min(report.stt ?? 0, waited);
  const llm = report.llm_ttft ?? 0;
  const sentence = report.first_sentence ?? 0;
  const voice = report.tts_first_audio ?? 0;
  const known = waited + llm + sentence + voice;
  const whole = total ?? known;
  if (whole <= 0) return null;
  // The LLM, and on a busy machine the voice, may begin before the turn's end is certain: time in
  // parallel counts once, and the parts are never longer than the whole.
  let parallel = Math.max(0, known - whole);
  const alone = (part: number): number => {
    const counted = Math.min(part, parallel);
    parallel -= counted;
    return part - counted;
  };
  const [modelAlone, sentenceAlone, voiceAlone] = [llm, sentence, voice].map(alone) as [
    number,
    number,
    number,
  ];
  const [endAlone, sttAlone] = [waited - stt, stt].map(alone) as [number, number];
  const parts: Part[] = [
    { key: "stt", name: "Speech to text", seconds: sttAlone },
    { key: "turn-end", name: "End of turn", seconds: endAlone },
    { key: "llm", name: "Language model", seconds: modelAlone },
    { key: "first-sentence", name: "First sentence", seconds: sentenceAlone },
    { key: "first-audio", name: "First audio", seconds: voiceAlone },
    { key: "network", name: "Network, rest", seconds: Math.max(0, whole - known) },
  ];
  return { total: whole, parts };
}

/** Whether the page's measurement is plausible; noise from the caller can make it wrong. */
function believable(heard: number | null, e2e: number | null): heard is number {
  return heard !== null && (e2e === null || (heard > 0.6 * e2e && heard < e2e + 5));
}

export const seconds = (value: number): string => `${value.toFixed(2)} s`;
