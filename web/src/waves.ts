// The audio of both sides: levels, speech activity and waveforms.

/** RMS above which a level counts as speech: -46 dB of full scale. */
const LOUD = 0.005;
/** Pauses between words count as speaking. */
const HOLD_MS = 350;
const STEP_MS = 50;
const BAR = 3;
const GAP = 2;

export class Side {
  readonly levels: number[] = [];
  lastLoud = -Infinity;
  private source: MediaStreamAudioSourceNode | null = null;
  private readonly analyser: AnalyserNode;
  private readonly samples: Float32Array<ArrayBuffer>;

  constructor(
    private readonly context: AudioContext,
    private readonly canvas: HTMLCanvasElement,
  ) {
    this.analyser = context.createAnalyser();
    this.analyser.fftSize = 2048;
    this.samples = new Float32Array(this.analyser.fftSize);
  }

  /** null: no track any more. */
  listen(track: MediaStreamTrack | null): void {
    this.source?.disconnect();
    this.source = null;
    if (track === null) return;
    this.source = this.context.createMediaStreamSource(new MediaStream([track]));
    this.source.connect(this.analyser);
  }

  /** Measures the current level; returns true during speech. */
  measure(now: number): boolean {
    let level = 0;
    if (this.source !== null) {
      this.analyser.getFloatTimeDomainData(this.samples);
      level = Math.sqrt(this.samples.reduce((sum, x) => sum + x * x, 0) / this.samples.length);
    }
    if (level > LOUD) this.lastLoud = now;
    this.levels.push(level);
    return now - this.lastLoud < HOLD_MS;
  }

  draw(still: boolean): void {
    const { canvas } = this;
    const ratio = window.devicePixelRatio || 1;
    const width = canvas.clientWidth;
    const height = canvas.clientHeight;
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
    }
    const pen = canvas.getContext("2d");
    if (pen === null) return;
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, width, height);
    const style = getComputedStyle(canvas);
    const count = Math.floor(width / (BAR + GAP));
    if (this.levels.length > 4 * count) this.levels.splice(0, this.levels.length - count);
    if (still) this.drawMeter(pen, style, width, height);
    else this.drawBars(pen, style, count, width, height);
  }

  private drawBars(
    pen: CanvasRenderingContext2D,
    style: CSSStyleDeclaration,
    count: number,
    width: number,
    height: number,
  ): void {
    const recent = this.levels.slice(-count);
    const quiet = style.getPropertyValue("--quiet");
    for (let i = 0; i < count; i += 1) {
      const level = recent[recent.length - 1 - i] ?? 0;
      const tall = Math.max(BAR, shown(level) * height);
      pen.fillStyle = level > LOUD ? style.color : quiet;
      pen.beginPath();
      pen.roundRect(width - (i + 1) * (BAR + GAP), (height - tall) / 2, BAR, tall, BAR / 2);
      pen.fill();
    }
  }

  /** With the system setting for reduced motion, nothing scrolls. */
  private drawMeter(
    pen: CanvasRenderingContext2D,
    style: CSSStyleDeclaration,
    width: number,
    height: number,
  ): void {
    const tall = 8;
    const bar = (colour: string, length: number): void => {
      pen.fillStyle = colour;
      pen.beginPath();
      pen.roundRect(0, (height - tall) / 2, Math.max(tall, length), tall, tall / 2);
      pen.fill();
    };
    bar(style.getPropertyValue("--quiet"), width);
    const level = Math.max(...this.levels.slice(-5), 0);
    if (level > LOUD) bar(style.color, shown(level) * width);
  }
}

/** Bar height as a fraction: 0 at -50 dB of full scale, 1 at -4 dB; squared for contrast. */
function shown(level: number): number {
  const decibels = 20 * Math.log10(Math.max(level, 1e-5));
  return Math.min(1, Math.max(0, (decibels + 50) / 46)) ** 2;
}

export interface Heard {
  agent: boolean;
  you: boolean;
}

/**
 * Measures both sides until `stop`; reports changes of who speaks, and the agent's latency.
 */
export class Waves {
  readonly agent: Side;
  readonly you: Side;
  /** Seconds from the end of the caller's speech to the reply's first sound; null: unknown. */
  answeredAfter: number | null = null;
  private readonly timer: number;
  private readonly still = matchMedia("(prefers-reduced-motion: reduce)");
  private told: Heard = { agent: false, you: false };
  private answerBegan = -Infinity;
  private steps = 0;

  constructor(
    context: AudioContext,
    canvases: { agent: HTMLCanvasElement; you: HTMLCanvasElement },
    private readonly tell: (heard: Heard) => void,
  ) {
    this.agent = new Side(context, canvases.agent);
    this.you = new Side(context, canvases.you);
    this.timer = window.setInterval(() => this.step(), STEP_MS);
  }

  stop(): void {
    window.clearInterval(this.timer);
    this.agent.listen(null);
    this.you.listen(null);
    this.tell({ agent: false, you: false });
  }

  private step(): void {
    const now = performance.now();
    const heard = { agent: this.agent.measure(now), you: this.you.measure(now) };
    if (heard.agent && !this.told.agent) this.noteAnswer(now);
    if (heard.agent !== this.told.agent || heard.you !== this.told.you) this.tell(heard);
    this.told = heard;
    this.steps += 1;
    const still = this.still.matches;
    if (document.hidden || (still && this.steps % 5 !== 0)) return;
    this.agent.draw(still);
    this.you.draw(still);
  }

  /** The first sound after the caller spoke is an answer; one after a pause in a reply is not. */
  private noteAnswer(now: number): void {
    const spoke = this.you.lastLoud;
    if (spoke <= this.answerBegan || document.hidden) return;
    this.answerBegan = now;
    this.answeredAfter = (now - spoke) / 1000;
  }
}
