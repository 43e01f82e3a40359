// Labels of the agent's voice, from the attribute `csm.voice`.

export function voiceName(voice: string): string {
  switch (voice) {
    case "":
      return "None yet";
    case "stock":
      return "Standard voice";
    case "caller":
      return "Your voice";
    default:
      return `Voice “${voice}”`;
  }
}
