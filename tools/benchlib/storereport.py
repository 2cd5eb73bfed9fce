# SPDX-License-Identifier: Apache-2.0
"""The store benchmark's results as a table and as a plot."""

GOALS = {'put_raw': 1.5, 'put_updated': 1.9, 'put_dense': 1.0, 'get_raw': 1.0,
         'get_dense': 0.6, 'get_cold': 2.0, 'get_random': 0.5}


def _mib(size):
    return f'{size / 1048576:10.1f} MiB'


def table(results):
    """Return the results as text."""
    names = {name: f'{file} ({size / 1048576:.0f} MiB)'
             for name, (file, size) in results['inputs'].items()}
    lines = ['Speed, geo store / file store (above 1: geo is faster); the '
             'median of each round\'s ratio', '']
    head = (f'{"":16}{"median":>8}{"least":>8}{"most":>8}{"goal":>6}'
            f'{"file s":>9}{"geo s":>9}')
    lines += [head, '-' * len(head)]
    for what, ratio in results['ratios'].items():
        by = results['seconds'][what]
        middle = {name: sorted(values)[len(values) // 2]
                  for name, values in by.items()}
        lines.append(
            f'{what:16}{ratio["median"]:8.2f}{ratio["min"]:8.2f}'
            f'{ratio["max"]:8.2f}{GOALS.get(what, ""):>6}'
            f'{middle["file"]:9.3f}{middle["geo"]:9.3f}')
    lines += ['', 'Stored bytes of the set', '']
    lines += [f'{name:10}{_mib(size)}'
              for name, size in results['stored']['bytes'].items()]
    lines += [f'{"geo index":10}{_mib(results["stored"]["index"])}   '
              f'({results["stored"]["chunks"]:,} chunks)', '']
    lines += [f'{name}: {text}' for name, text in names.items()]
    lines += ['', f'{results["rounds"]} rounds, {results["cpus"]} CPUs, '
                  f'{results["machine"]}', '']
    lines += [f'{name}: {value}'
              for name, value in results['summary'].items()]
    return '\n'.join(lines)


def plot(results, folder):
    """Draw the ratios with their goals, and the stored bytes."""
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot
    folder.mkdir(parents=True, exist_ok=True)
    figure, (speed, size) = pyplot.subplots(
        1, 2, figsize=(12, 5), gridspec_kw={'width_ratios': [2, 1]})
    names = list(results['ratios'])
    for row, name in enumerate(names):
        ratio = results['ratios'][name]
        speed.barh(row, ratio['median'], color='#1b7837', height=0.6)
        speed.hlines(row, ratio['min'], ratio['max'], color='#444444')
        if name in GOALS:
            speed.vlines(GOALS[name], row - 0.4, row + 0.4, color='#762a83',
                         linewidth=2)
    speed.axvline(1, color='#999999', linewidth=1)
    speed.set_yticks(range(len(names)), names)
    speed.invert_yaxis()
    speed.set_xlabel('times as fast as the file store: median, least to '
                     'most; upright: the goal')
    taken = {name: value / 1048576 for name, value in
             results['stored']['bytes'].items() if name != 'file'}
    size.barh(range(len(taken)), list(taken.values()), height=0.6,
              color=['#1b7837' if name == 'geo' else '#af8dc3'
                     for name in taken])
    size.set_yticks(range(len(taken)), list(taken))
    size.invert_yaxis()
    size.set_xlabel('MiB stored for the set of images')
    figure.tight_layout()
    figure.savefig(folder / 'store.svg')
    pyplot.close(figure)
