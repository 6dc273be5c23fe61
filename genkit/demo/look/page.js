// Two players of a pair run together: play, pause, jump and speed of one are the other's too.
(() => {
  let busy = false;
  const other = (player) => {
    const pair = player.closest(".pair");
    const players = pair ? [...pair.querySelectorAll("video")] : [];
    return players.length === 2 ? players[1 - players.indexOf(player)] : null;
  };
  const follow = (event) => {
    const player = event.target;
    if (busy || !(player instanceof HTMLVideoElement)) return;
    const twin = other(player);
    if (!twin) return;
    busy = true;
    if (Math.abs(twin.currentTime - player.currentTime) > 0.04) twin.currentTime = player.currentTime;
    twin.playbackRate = player.playbackRate;
    if (event.type === "play") twin.play().catch(() => {});
    if (event.type === "pause") twin.pause();
    setTimeout(() => { busy = false; }, 60);
  };
  for (const kind of ["play", "pause", "seeking", "ratechange"]) document.addEventListener(kind, follow, true);
})();
