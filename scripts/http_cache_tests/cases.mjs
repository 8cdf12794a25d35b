// What the cases of the package are called, and how they count: as JSON.
import { createRequire } from 'module'
import { pathToFileURL } from 'url'

const installed = createRequire(process.cwd() + '/').resolve('http-cache-tests/package.json').replace('package.json', '')
const { default: suites } = await import(pathToFileURL(installed + 'tests/index.mjs'))
const cases = suites.flatMap(suite => suite.tests.filter(test => !test.browser_only).map(test => (
  { id: test.id, kind: test.kind || 'required' })))
console.log(JSON.stringify(cases))
