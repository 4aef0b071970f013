// Types that openapi-typescript makes of the service's OpenAPI document, checked by tsc, used by openapi-fetch.
import { execFileSync } from "node:child_process";

const bin = (name) => `node_modules/.bin/${name}`;
const run = (...command) => execFileSync(command[0], command.slice(1), { stdio: "inherit" });

run(bin("openapi-typescript"), `${process.env.CLIENTS_URL}/openapi.json`, "-o", "schema.d.ts", "--default-non-nullable", "false");
run(bin("tsc"), "--strict", "--module", "nodenext", "--target", "es2022", "--skipLibCheck", "client.ts");
run("node", "client.js");
