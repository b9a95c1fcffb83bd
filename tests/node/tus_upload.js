// Uploads a file with tus-js-client: node tus_upload.js ENDPOINT FILE STATE [STOP]. It goes on where the run before
// ended, says at which byte, and after STOP bytes waits to be killed.
import fs from "node:fs";
import tus from "tus-js-client";

const [endpoint, path, state, stop] = process.argv.slice(2);
let isFirst = true;
const upload = new tus.Upload(fs.createReadStream(path), {
  endpoint,
  chunkSize: 8 * 1024 * 1024,
  metadata: { filename: "from node.bin" },
  uploadSize: fs.statSync(path).size,
  urlStorage: new tus.FileUrlStorage(state),
  retryDelays: [0, 100, 500],
  onProgress(sent) {
    if (isFirst) process.stdout.write(`begins at ${sent}\n`);
    isFirst = false;
  },
  onChunkComplete(_size, accepted) {
    if (!stop || accepted < Number(stop)) return;
    fs.writeSync(1, "waits\n");
    fs.readSync(0, Buffer.alloc(1));
  },
  onError(error) {
    console.error(String(error));
    process.exit(1);
  },
  onSuccess() {
    console.log(upload.url);
  },
});
upload.findPreviousUploads().then((found) => {
  if (found.length) upload.resumeFromPreviousUpload(found[0]);
  upload.start();
});
