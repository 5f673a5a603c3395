-- Set or replace reports. ARGV from 5 on four a row: kind, name, value, end.

put_reports(5)
return {'ok', epoch, now}
