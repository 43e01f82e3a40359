// One call: a LiveKit room with an agent. Reports events to its listener and has no display code.

import {
  createLocalAudioTrack,
  DisconnectReason,
  type LocalAudioTrack,
  type Participant,
  ParticipantKind,
  type RemoteParticipant,
  type RemoteTrack,
  Room,
  RoomEvent,
  Track,
  TrackEvent,
} from "livekit-client";
import { readReport, type TurnReport } from "./figures";
import type { Speaker } from "./transcript";
import * as words from "./words";
import { Failure, type Words } from "./words";

const CONSENT = "csm.voice_consent";
const AGENT_LIMIT_MS = 10_000;
/** Time without packets after which the connection counts as lost; LiveKit reports it later. */
const SILENT_LINE_MS = 3_000;

export interface Listener {
  /** The agent's state, such as `listening`, `thinking` or `speaking`, or absent. */
  agentState(state: string | null): void;
  /** Attributes of the agent. */
  facts(agent: Readonly<Record<string, string>>): void;
  said(speaker: Speaker, segment: string, text: string, final: boolean): void;
  turn(report: TurnReport): void;
  /** The track to play, or null. */
  sound(side: Speaker, track: MediaStreamTrack | null): void;
  /** A problem that does not end the call; null: it is over. */
  trouble(words: Words | null): void;
  playable(possible: boolean): void;
  muted(muted: boolean): void;
  devices(): void;
  ended(words: Words | null): void;
}

interface Pass {
  url: string;
  token: string;
}

/** Raises Failure. */
async function fetchPass(): Promise<Pass> {
  let answer: Response;
  try {
    answer = await fetch("token", { method: "POST", signal: AbortSignal.timeout(10_000) });
  } catch {
    throw new Failure(words.ofFetch());
  }
  if (!answer.ok) throw new Failure(words.ofToken(answer.status, answer.headers.get("Retry-After")));
  return (await answer.json()) as Pass;
}

/** Raises Failure. */
async function openMicrophone(deviceId: string): Promise<LocalAudioTrack> {
  if (!window.isSecureContext) throw new Failure(words.INSECURE);
  try {
    return await createLocalAudioTrack({
      deviceId,
      echoCancellation: true,
      noiseSuppression: true,
      autoGainControl: true,
    });
  } catch (error) {
    throw new Failure(words.ofMicrophone(error));
  }
}

export class Call {
  private readonly room = new Room({
    // Muting closes the microphone, and the browser shows that.
    publishDefaults: { stopMicTrackOnMute: true, dtx: false },
  });
  private readonly timers: number[] = [];
  private readonly elements = new Set<HTMLMediaElement>();
  private microphone: LocalAudioTrack | null = null;
  private agentTrack: RemoteTrack | null = null;
  private agent: RemoteParticipant | null = null;
  private hadAgent = false;
  private over = false;
  /** Reports the gravest of the current problems. */
  private readonly troubles = new Map<string, Words>();

  constructor(private readonly listener: Listener) {
    this.listen();
  }

  /** Returns after joining the room, with or without an agent. Raises Failure. */
  async start(deviceId: string, consents: boolean): Promise<void> {
    try {
      this.microphone = await openMicrophone(deviceId);
      this.listener.sound("you", this.microphone.mediaStreamTrack);
      const pass = await fetchPass();
      if (this.over) return;
      try {
        await this.room.connect(pass.url, pass.token);
      } catch (error) {
        throw new Failure(words.ofConnecting(error));
      }
      if (consents) await this.consent(true);
      await this.publish(this.microphone);
    } catch (error) {
      await this.end(null, false);
      throw error;
    }
    this.timers.push(window.setInterval(() => void this.checkLine(), 1_000));
    this.timers.push(window.setTimeout(() => this.expectAgent(), AGENT_LIMIT_MS));
    for (const person of this.room.remoteParticipants.values()) this.meet(person);
    this.tellFacts();
    this.listener.playable(this.room.canPlaybackAudio);
  }

  hangUp(): Promise<void> {
    return this.end(null, true);
  }

  async setMuted(muted: boolean): Promise<void> {
    try {
      await this.room.localParticipant.setMicrophoneEnabled(!muted);
    } catch (error) {
      this.trouble("microphone", words.ofMicrophone(error));
    }
  }

  /** Returns false if the value did not reach the server. */
  async consent(granted: boolean): Promise<boolean> {
    const us = this.room.localParticipant;
    // The agent reacts only to changes. Clearing the value first makes a change for a caller who
    // refused here, agreed aloud and refuses again: every value but "granted" is a refusal.
    const no = us.attributes[CONSENT] === "refused" ? "" : "refused";
    try {
      await us.setAttributes({ [CONSENT]: granted ? "granted" : no });
    } catch {
      this.trouble("consent", words.CONSENT_FAILED);
      return false;
    }
    this.trouble("consent", null);
    return true;
  }

  async useMicrophone(deviceId: string): Promise<void> {
    try {
      await this.room.switchActiveDevice("audioinput", deviceId);
      this.trouble("microphone", null);
    } catch (error) {
      this.trouble("microphone", words.ofMicrophone(error));
    }
  }

  /** Must be called from a click handler: browsers play audio only after a click. */
  async playSound(): Promise<void> {
    await this.room.startAudio();
  }

  private async publish(track: LocalAudioTrack): Promise<void> {
    track.on(TrackEvent.Restarted, () => {
      this.listener.sound("you", track.mediaStreamTrack);
      this.trouble("microphone", null);
    });
    track.on(TrackEvent.Ended, () => this.trouble("microphone", words.MICROPHONE_GONE));
    try {
      await this.room.localParticipant.publishTrack(track);
    } catch (error) {
      throw new Failure(words.ofConnecting(error));
    }
  }

  private listen(): void {
    const { room, listener } = this;
    room
      .on(RoomEvent.ParticipantConnected, (person) => this.meet(person))
      .on(RoomEvent.ParticipantDisconnected, (person) => this.part(person))
      .on(RoomEvent.ParticipantAttributesChanged, () => this.tellFacts())
      .on(RoomEvent.TrackSubscribed, (track, _, person) => this.hear(track, person))
      .on(RoomEvent.TrackUnsubscribed, (track) => this.unhear(track))
      .on(RoomEvent.DataReceived, (data, person, _kind, topic) => {
        const report = topic === "csm.turn" && person?.isAgent ? readReport(data) : null;
        if (report !== null) listener.turn(report);
      })
      .on(RoomEvent.TrackMuted, (_, person) => this.tellMuted(person))
      .on(RoomEvent.TrackUnmuted, (_, person) => this.tellMuted(person))
      .on(RoomEvent.SignalReconnecting, () => this.trouble("line", words.RECONNECTING))
      .on(RoomEvent.Reconnecting, () => this.trouble("line", words.RECONNECTING))
      .on(RoomEvent.Reconnected, () => this.reconnected())
      .on(RoomEvent.AudioPlaybackStatusChanged, () => listener.playable(room.canPlaybackAudio))
      .on(RoomEvent.MediaDevicesChanged, () => listener.devices())
      .on(RoomEvent.MediaDevicesError, (error) =>
        this.trouble("microphone", words.ofMicrophone(error)),
      )
      .on(RoomEvent.Disconnected, (reason) => void this.lost(reason));
    room.registerTextStreamHandler("lk.transcription", (reader, { identity }) => {
      void this.read(reader, identity);
    });
  }

  private async read(
    reader: AsyncIterable<string> & { info: { id: string; attributes?: Record<string, string> } },
    identity: string,
  ): Promise<void> {
    const { id, attributes = {} } = reader.info;
    const ours = identity === this.room.localParticipant.identity;
    if (!ours && !this.room.remoteParticipants.get(identity)?.isAgent) return;
    const segment = attributes["lk.segment_id"] ?? id;
    const speaker = ours ? "you" : "agent";
    let text = "";
    try {
      for await (const piece of reader) {
        text += piece;
        this.listener.said(speaker, segment, text, false);
      }
    } catch {
      // A lost connection cut the stream; the received part stays.
    }
    // The caller's words come as one stream per interim result, the agent's as one growing stream.
    const final = !ours || attributes["lk.transcription_final"] === "true";
    this.listener.said(speaker, segment, text, final);
  }

  private meet(person: RemoteParticipant): void {
    if (person.kind !== ParticipantKind.AGENT) return;
    this.agent = person;
    this.hadAgent = true;
    this.trouble("agent", null);
    this.tellFacts();
  }

  private part(person: RemoteParticipant): void {
    if (person !== this.agent) return;
    this.agent = null;
    this.trouble("agent", words.AGENT_LEFT);
    this.tellFacts();
  }

  private expectAgent(): void {
    if (this.agent === null && !this.hadAgent) this.trouble("agent", words.NO_AGENT);
  }

  private tellFacts(): void {
    const agent = this.agent?.attributes ?? {};
    this.listener.facts(agent);
    this.listener.agentState(this.agent === null ? null : (agent["lk.agent.state"] ?? "initializing"));
  }

  private hear(track: RemoteTrack, person: RemoteParticipant): void {
    if (track.kind !== Track.Kind.Audio || !person.isAgent) return;
    this.agentTrack = track;
    const element = track.attach();
    this.elements.add(element);
    document.body.append(element);
    this.listener.sound("agent", track.mediaStreamTrack);
  }

  private unhear(track: RemoteTrack): void {
    for (const element of track.detach()) {
      this.elements.delete(element);
      element.remove();
    }
    if (track !== this.agentTrack) return;
    this.agentTrack = null;
    this.listener.sound("agent", null);
  }

  private tellMuted(person: Participant): void {
    if (person === this.room.localParticipant) this.listener.muted(!person.isMicrophoneEnabled);
  }

  private reconnected(): void {
    this.trouble("line", null);
    this.tellFacts();
  }

  /** Packets arrive many times a second; in silence at least once a second. */
  private async checkLine(): Promise<void> {
    const stats = await this.agentTrack?.getRTCStatsReport();
    if (stats === undefined || this.over) return;
    let last = 0;
    for (const stat of stats.values() as Iterable<Record<string, unknown>>) {
      if (stat["type"] !== "inbound-rtp") continue;
      last = Math.max(last, Number(stat["lastPacketReceivedTimestamp"] ?? 0));
    }
    if (last === 0) return;
    const silent = performance.timeOrigin + performance.now() - last > SILENT_LINE_MS;
    this.trouble("silence", silent ? words.SILENT_LINE : null);
  }

  private trouble(about: "line" | "silence" | "agent" | "microphone" | "consent", told: Words | null): void {
    if (this.over) return;
    if (told === null && !this.troubles.has(about)) return;
    if (told === null) this.troubles.delete(about);
    else this.troubles.set(about, told);
    const order = ["line", "silence", "agent", "microphone", "consent"];
    const gravest = order.find((name) => this.troubles.has(name));
    this.listener.trouble(gravest === undefined ? null : (this.troubles.get(gravest) ?? null));
  }

  private lost(reason: DisconnectReason | undefined): Promise<void> {
    return this.end(words.ofEnding(reason), true);
  }

  private async end(told: Words | null, tell: boolean): Promise<void> {
    if (this.over) return;
    this.over = true;
    for (const timer of this.timers) window.clearTimeout(timer);
    this.microphone?.stop();
    for (const element of this.elements) element.remove();
    if (tell) this.listener.ended(told);
    await this.room.disconnect();
  }
}
