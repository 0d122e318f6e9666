/** Takes a picture with the camera. */

import { el } from "../element.js";
import { t } from "../text.js";
import { dialog } from "./dialog.js";

/** @param {import("./own.js").Own} own */
export function openCamera(own) {
  dialog(t("images.cameraTitle"), (scope, close) => {
    const video = /** @type {HTMLVideoElement} */ (
      el("video", { autoplay: true, muted: true, playsinline: true, "aria-label": t("images.cameraTitle") })
    );
    const note = el("p.quiet", { role: "status" }, t("images.cameraWait"));
    const shoot = el("button.primary", { type: "button", disabled: true }, t("images.shoot"));
    const begin = async () => {
      try {
        const media = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" }, audio: false });
        scope.onClose(() => media.getTracks().forEach((track) => track.stop()));
        if (scope.closed) return;
        video.srcObject = media;
        await video.play();
        shoot.disabled = false;
        note.textContent = "";
      } catch {
        if (!scope.closed) note.textContent = t("images.cameraNone");
      }
    };
    scope.listen(shoot, "click", async () => {
      // The middle square: what networks take is mostly square, and a picture is not squeezed then.
      const side = Math.min(video.videoWidth, video.videoHeight);
      const canvas = new OffscreenCanvas(side, side);
      const context = /** @type {OffscreenCanvasRenderingContext2D} */ (canvas.getContext("2d"));
      context.drawImage(
        video,
        (video.videoWidth - side) / 2,
        (video.videoHeight - side) / 2,
        side,
        side,
        0,
        0,
        side,
        side,
      );
      const file = await canvas.convertToBlob({ type: "image/jpeg", quality: 0.95 });
      own.show([own.make(file, t("images.cameraName"), "own")]);
      close();
    });
    begin();
    return [video, note, shoot];
  });
}
