// The browser's camera, and its errors in words.

const WORDS = {
  NotAllowedError: "The browser may not use the camera. Allow it in the address bar and start again.",
  NotFoundError: "This machine has no camera.",
  NotReadableError: "Another program uses the camera.",
};

/** Return the stream of the camera that looks away from the user, where there are two; throw an Error in words. */
export async function openCamera(size = {}) {
  if (!navigator.mediaDevices) throw new Error("The browser gives a page its camera only over HTTPS or on this machine.");
  try {
    return await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment", ...size } });
  } catch (error) {
    throw new Error(WORDS[error.name] ?? `The camera gives no picture: ${error.message || error.name}.`);
  }
}
