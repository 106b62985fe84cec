// Whether an OpenAPI description breaks those who were written for an older one:
//   node openapi-breaking.cjs OLD NEW [OLD NEW …]
// What breaks is decided by api-smart-diff, but for two things about answers.

const { readFileSync } = require('node:fs');
const { apiCompare } = require('api-smart-diff');

const read = (file) => JSON.parse(readFileSync(file, 'utf8'));

function breaks({ type, action, path }) {
  // What callers see of a component is judged where an operation uses it.
  if (path[0] !== 'paths') return false;
  if (path.includes('responses')) {
    // The contract says that enumerations may grow: they get more values, or say that they may.
    if (action === 'add' && path.at(-2) === 'enum') return false;
    if (action === 'remove' && path.at(-1) === 'enum') return false;
    // api-smart-diff lets a member become any other type. `properties type` is a member of that name.
    const [keyword, parent] = path.slice(-2).reverse();
    if (action === 'replace' && keyword === 'type' && parent !== 'properties') return true;
  }
  return type === 'breaking';
}

let failed = false;
for (let files = process.argv.slice(2); files.length > 0; files = files.slice(2)) {
  const [before, after] = files;
  for (const { action, path } of apiCompare(read(before), read(after)).diffs.filter(breaks)) {
    failed = true;
    console.log(`${after}: ${action} ${path.join(' ')}`);
  }
}
process.exitCode = failed ? 1 : 0;
