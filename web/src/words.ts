// The page's error messages: each names the cause and the remedy.

import { ConnectionError, ConnectionErrorReason, DisconnectReason } from "livekit-client";

export interface Words {
  title: string;
  text: string;
}

/** An error with its message for the user. */
export class Failure extends Error {
  constructor(readonly words: Words) {
    super(words.title);
  }
}

const words = (title: string, text: string): Words => ({ title, text });

export const NO_AGENT = words(
  "The agent is not here yet.",
  "It may be busy or not running. The page keeps waiting; you can also hang up and start again. The terminal in which the agent runs says more.",
);
export const AGENT_LEFT = words(
  "The agent has left the call.",
  "Hang up and start again; if it does not come back, look at the terminal in which it runs.",
);
export const RECONNECTING = words(
  "The connection is lost. Reconnecting…",
  "Your speech is not transmitted now. The call continues by itself when the network is back.",
);
export const SILENT_LINE = words(
  "Nothing arrives from the other side.",
  "The network is slow or down. The call continues by itself when it is back.",
);
export const SOUND_BLOCKED = words(
  "The browser keeps the sound off.",
  "Press “Turn the sound on” to hear the agent.",
);
export const MICROPHONE_GONE = words(
  "The microphone is gone.",
  "It was unplugged or taken by another program. Plug it in again, or choose another one below.",
);
export const CONSENT_FAILED = words(
  "The switch for your voice did not reach the call.",
  "Nothing has changed; try once more. Hanging up ends any use of your voice.",
);
const SERVER_DOWN = words(
  "The server of this page does not answer.",
  "Is it still running? Start it (make web), then start the call again.",
);
const LIVEKIT_DOWN = words(
  "The call server cannot be reached.",
  "LiveKit is down, or a firewall blocks it. Check that it runs, then start the call again.",
);
const REFUSED = words(
  "The call server refused this call.",
  "Its token was too old or wrong. Start the call again; if that fails too, check LiveKit's key.",
);

export function ofMicrophone(error: unknown): Words {
  const name = error instanceof Error ? error.name : "";
  switch (name) {
    case "NotAllowedError":
    case "SecurityError":
      return words(
        "The microphone is not allowed.",
        "Allow it for this page in the browser's address bar, then start the call again.",
      );
    case "NotFoundError":
    case "OverconstrainedError":
      return words(
        "There is no microphone.",
        "Plug one in, or choose another one below, then start the call again.",
      );
    case "NotReadableError":
    case "AbortError":
      return words(
        "The microphone cannot be opened.",
        "Another program may use it. Close that program, then start the call again.",
      );
    default:
      return words("The microphone does not work.", "Choose another one below and try again.");
  }
}

export const INSECURE = words(
  "The browser allows no microphone at this address.",
  "Open the page by https, or on this machine by http://localhost.",
);

export function ofToken(status: number, retryAfter: string | null): Words {
  if (status === 429) {
    return words(
      "Too many calls from here in a short time.",
      `Start the call again in ${retryAfter ?? "60"} seconds.`,
    );
  }
  return words(
    "The server of this page gave no token for a call.",
    `It answered ${status}. Load the page again; if that fails too, look at the server's log.`,
  );
}

/** `fetch` itself failed: the server does not answer. */
export const ofFetch = (): Words => SERVER_DOWN;

export function ofConnecting(error: unknown): Words {
  if (!(error instanceof ConnectionError)) return LIVEKIT_DOWN;
  return error.reason === ConnectionErrorReason.NotAllowed ? REFUSED : LIVEKIT_DOWN;
}

/** The reason why LiveKit ended the call; null if the user hung up. */
export function ofEnding(reason: DisconnectReason | undefined): Words | null {
  switch (reason) {
    case DisconnectReason.CLIENT_INITIATED:
      return null;
    case DisconnectReason.ROOM_DELETED:
    case DisconnectReason.ROOM_CLOSED:
      return words("The call was ended by the other side.", "Start a new one whenever you like.");
    case DisconnectReason.PARTICIPANT_REMOVED:
    case DisconnectReason.DUPLICATE_IDENTITY:
      return words("You were removed from the call.", "Start a new one.");
    case DisconnectReason.SERVER_SHUTDOWN:
      return words("The call server has stopped.", "When it is back, start a new call.");
    default:
      return words(
        "The call is lost.",
        "The network or the call server failed and did not come back. Start a new call.",
      );
  }
}
