// What the cases of the package are called, how they count, on which others they depend: as JSON.
import { createRequire } from 'module'
import { pathToFileURL } from 'url'

const installed = createRequire(process.cwd() + '/').resolve('http-cache-tests/package.json').replace('package.json', '')
const { default: suites } = await import(pathToFileURL(installed + 'tests/index.mjs'))
const cases = suites.flatMap(suite => suite.tests.filter(test => !test.browser_only).map(test => (
  { id: test.id, kind: test.kind || 'required', name: test.name, depends_on: test.depends_on || [] })))
console.log(JSON.stringify(cases))
