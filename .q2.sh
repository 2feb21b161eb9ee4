for i in 1 2 3; do bash -c 'time python -c "import vmm.machine.domain"' 2>&1 | paste -sd' '; done
bash -c 'time python -c "pass"' 2>&1 | paste -sd' '
