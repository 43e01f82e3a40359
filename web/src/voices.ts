// Labels of the agent's voice, from the attributes `csm.voice`, `csm.clones` and `csm.follows`.

/** What the engine's model makes of reference audio. */
export interface Model {
  clones: boolean;
  /** What a model that does not clone takes from a voice, e.g. "pitch and size"; "": nothing. */
  follows: string;
}

function voiceName(voice: string): string {
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

/** The name of what is heard; `cloned` is false if the voice was wanted and the model does not clone. */
export function heardAs(voice: string, model: Model): { name: string; cloned: boolean } {
  const own = voice === "" || voice === "stock";
  if (own || model.clones) return { name: voiceName(voice), cloned: true };
  if (model.follows !== "") {
    const name = voice === "caller" ? `Your ${model.follows}` : `The ${model.follows} of “${voice}”`;
    return { name, cloned: false };
  }
  const kept = voice === "caller";
  return { name: voiceName(kept ? "stock" : voice), cloned: !kept };
}
