# SPDX-License-Identifier: Apache-2.0
"""Results as a table and as a plot."""

import json

_LEVELS = {'http': 'through the HTTP API', 'api': 'data-API calls'}


def _names(kinds):
    return list(dict.fromkeys(name for by in kinds.values() for name in by))


def table(results):
    """Return the results as text: p50 and p95 in ms, and the ratio of the
    slower of ours to the faster of SQL."""
    lines = []
    for size, levels in results['results'].items():
        for level, kinds in levels.items():
            names = _names(kinds)
            lines += ['', f'{int(size):,} images, {_LEVELS[level]}; p50 / '
                          f'p95 in ms', '']
            head = f'{"":28}' + ''.join(f'{name:>18}' for name in names)
            lines += [head + f'{"ratio":>8}', '-' * (len(head) + 8)]
            for kind, by in kinds.items():
                cells = ''.join(
                    f'{by[n]["p50"]:9.2f} /{by[n]["p95"]:7.2f}'
                    for n in names)
                ours = max(by[n]['p50'] for n in names
                           if n.startswith('geo'))
                theirs = min(by[n]['p50'] for n in names
                             if n.startswith('sql'))
                lines.append(f'{kind:28}{cells}{ours / theirs:8.2f}')
    lines += ['', 'ratio: the slower of ours to the faster of SQL, at p50']
    lines += [f'{name}: {value}'
              for name, value in results['summary'].items()]
    return '\n'.join(lines)


def plot(results, path):
    """Draw p50 and p95 of each kind of request, a panel per size."""
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot, ticker
    sizes = results['results']
    figure, panels = pyplot.subplots(
        1, len(sizes), figsize=(9 * len(sizes), 11), squeeze=False)
    colours = {'geo-sqlite': '#1b7837', 'geo-redis': '#7fbf7b',
               'sql-postgresql': '#762a83', 'sql-mariadb': '#af8dc3'}
    for panel, (size, levels) in zip(panels[0], sizes.items(), strict=True):
        kinds = levels['http']
        names = _names(kinds)
        height = 0.8 / len(names)
        for place, name in enumerate(names):
            at = [row + (place - len(names) / 2 + 0.5) * height
                  for row in range(len(kinds))]
            p50 = [by[name]['p50'] for by in kinds.values()]
            p95 = [by[name]['p95'] for by in kinds.values()]
            panel.barh(at, p50, height, label=name, color=colours[name])
            panel.hlines(at, p50, p95, color='#444444', linewidth=1)
        panel.set_yticks(range(len(kinds)), list(kinds))
        panel.invert_yaxis()
        panel.set_xscale('log')
        for axis in ('major', 'minor'):
            getattr(panel.xaxis, f'set_{axis}_formatter')(
                ticker.FuncFormatter(lambda value, _: (
                    f'{value:g}' if f'{value:.0e}'[0] in '125' else '')))
        panel.set_xlabel('ms, bar: p50, line to p95')
        panel.set_title(f'{int(size):,} images, through the HTTP API')
        panel.grid(axis='x', color='#dddddd', which='both')
        panel.set_axisbelow(True)
        panel.legend(loc='lower right')
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


def write(results, folder):
    """Write the results, the table and the plot into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'metadata.json').write_text(json.dumps(results, indent=1))
    (folder / 'metadata.txt').write_text(table(results) + '\n')
    plot(results, folder / 'metadata.svg')
